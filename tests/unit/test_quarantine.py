"""Who runs with whom in a quarantine, and who is found out; the processes are the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import pytest

from fanout import Item, Record, Unavailable
from fanout_workers.attempts import Stopping
from fanout_workers.item import Released
from fanout_workers.quarantine import NoQuarantine, Poison, Quarantine
from fanout_workers.quarantine.ward import Suspect, Ward

pytestmark = pytest.mark.anyio


class FakeWard:
    """A ward that the test ends."""

    def __init__(
        self,
        command: Sequence[str],
        on_empty: Callable[[Any], None],
        on_end: Callable[[Any, list[Suspect]], None],
    ) -> None:
        self.command = command
        self.inside: list[Suspect] = []
        self.ready = True
        self.closed = self.stopped = False
        self.culprit: Suspect | None = None
        self.status = "SIGKILL"
        self._on_empty, self._on_end = on_empty, on_end

    def __len__(self) -> int:
        return len(self.inside)

    @property
    def names(self) -> list[str]:
        return [suspect.order["item"]["id"] for suspect in self.inside]

    def admit(self, suspects: Iterable[Suspect]) -> None:
        self.inside.extend(suspects)

    def forget(self, suspect: Suspect) -> None:
        self.inside = [inside for inside in self.inside if inside is not suspect]

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True
        self.die()

    async def ended(self) -> None:
        """At once."""

    def say(self, name: str, **said: Any) -> None:
        suspect = self.inside.pop(self.names.index(name))
        suspect.said.set_result(said)
        if not self.inside:
            self._on_empty(self)

    def die(self, culprit: str | None = None) -> None:
        left, self.inside = self.inside, []
        if culprit is not None:
            names = [suspect.order["item"]["id"] for suspect in left]
            self.culprit = left[names.index(culprit)]
        self._on_end(self, left)


class Bench:
    def __init__(self) -> None:
        self.wards: list[FakeWard] = []
        self.quarantine = Quarantine(["child"], self._make)

    def _make(self, *arguments: Any) -> Ward:
        self.wards.append(FakeWard(*arguments))
        return self.wards[-1]  # type: ignore[return-value]

    @property
    def open(self) -> list[list[str]]:
        return [ward.names for ward in self.wards if ward.names]

    async def run(self, *names: str) -> list[asyncio.Task[Record]]:
        running = [
            asyncio.create_task(self.quarantine.run("k", Item(id=name, payload=1), {}, name))
            for name in names
        ]
        await asyncio.sleep(0)
        return running


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def raised(running: Awaitable[Any]) -> BaseException | None:
    (outcome,) = await asyncio.gather(running, return_exceptions=True)
    return outcome if isinstance(outcome, BaseException) else None


def ok(name: str) -> dict[str, Any]:
    return Record(id=name, status="ok", data={"of": name}).model_dump()


async def test_all_who_come_run_together(bench: Bench) -> None:
    running = await bench.run("a", "b")
    running += await bench.run("c")
    assert bench.open == [["a", "b", "c"]]
    for name in "abc":
        bench.wards[0].say(name, record=ok(name))
    assert [(await each).data for each in running] == [{"of": name} for name in "abc"]
    assert not bench.wards[0].closed  # more may come


async def test_who_was_seen_at_it_runs_alone_and_is_poison_the_second_time(bench: Bench) -> None:
    running = await bench.run(*"abcdef")
    bench.wards[0].say("a", record=ok("a"))
    bench.wards[0].die(culprit="c")
    assert bench.open == [["b", "d", "e", "f"], ["c"]]
    bench.wards[2].die()
    error = await raised(running[2])
    assert isinstance(error, Poison)
    assert "2 times (SIGKILL)" in str(error)
    assert not any(task.done() for task in (running[1], *running[3:]))


async def test_where_nobody_was_seen_all_are_divided_until_one_is_alone(bench: Bench) -> None:
    names = [str(number) for number in range(40)]
    running = await bench.run(*names)
    deaths = 0
    for _ in range(10):
        for ward in list(bench.wards):
            if "17" in ward.names:
                ward.die()
                deaths += 1
            else:
                for name in ward.names:
                    ward.say(name, record=ok(name))
        await asyncio.sleep(0)
    assert isinstance(await raised(running[17]), Poison)
    assert deaths == 1 + 3 + 1  # 40, 10, 3, 1, 1
    others = await asyncio.gather(*running[:17], *running[18:])
    assert {record.status for record in others} == {"ok"}


async def test_an_accident_makes_nobody_poison(bench: Bench) -> None:
    (running,) = await bench.run("a")
    bench.wards[0].die()
    bench.wards[1].say("a", record=ok("a"))
    assert (await running).status == "ok"
    assert bench.wards[1].closed


async def test_newcomers_do_not_come_to_those_who_are_divided(bench: Bench) -> None:
    await bench.run("a", "b")
    bench.wards[0].die()
    await bench.run("c")
    assert bench.open == [["a"], ["b"], ["c"]]


async def test_no_more_processes_than_there_may_be(bench: Bench) -> None:
    await bench.run(*"abcdefgh")
    bench.wards[0].die()
    await bench.run("late")
    assert len(bench.open) == 4
    first = bench.wards[1]
    for name in first.names:
        first.say(name, record=ok(name))
    assert first.closed
    assert bench.open[-1] == ["late"]


async def test_a_process_that_does_not_begin_says_nothing_of_its_items(bench: Bench) -> None:
    errors = []
    for number in range(3):
        (running,) = await bench.run("a")
        bench.wards[number].ready = False
        bench.wards[number].die()
        errors.append(type(await raised(running)))
    # Back into the queue at first, for it may be Redis that is away.
    assert errors == [Unavailable, Unavailable, NoQuarantine]


async def test_what_the_child_says_is_raised(bench: Bench) -> None:
    running = await bench.run("a", "b", "c")
    bench.wards[0].say("a", error="Stopping", message="")
    bench.wards[0].say("b", error="Odd", message="strange")
    bench.wards[0].say("c", error="Released", message="")  # its job was paused meanwhile
    assert isinstance(await raised(running[0]), Stopping)
    assert repr(await raised(running[1])) == "RuntimeError('strange')"
    assert isinstance(await raised(running[2]), Released)


async def test_a_stop_sends_back_what_has_not_begun(bench: Bench) -> None:
    running = await bench.run("a", "b")
    bench.quarantine.begin_stop()
    assert bench.wards[0].stopped
    bench.wards[0].say("a", record=ok("a"))
    bench.wards[0].die()
    assert (await running[0]).status == "ok"
    assert isinstance(await raised(running[1]), Stopping)
    (late,) = await bench.run("late")
    assert isinstance(await raised(late), Stopping)


async def test_whom_nobody_waits_for_is_forgotten(bench: Bench) -> None:
    running = await bench.run("a", "b")
    running[0].cancel()
    await asyncio.gather(running[0], return_exceptions=True)
    assert bench.open == [["b"]]
