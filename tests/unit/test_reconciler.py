"""When a loss of the store is noticed, and that nothing is done while all is well."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from fanout.client.ledger import Ledger
from fanout.client.reconciler import Reconciler
from fanout.errors import JobError
from fanout.store import Checkpoint, Pulse
from fanout.testing import MemoryStore
from fanout.wire import Item
from tests.store_contract import SPEC, items, record

pytestmark = pytest.mark.anyio


class Client:
    """What a client knows; notes what it is asked to mend."""

    def __init__(self, count: int = 4) -> None:
        self.outstanding: Mapping[int, Item] = dict(enumerate(items("j", 0, count)))
        self.submitted = Checkpoint(count)
        self.ledger = Ledger()
        self.losses: list[str] = []
        self.error: Exception | None = None

    async def mend(self, loss: str) -> None:
        self.losses.append(loss)
        if self.error is not None:
            raise self.error


class Store(MemoryStore):
    """Counts what it is asked, and names its run."""

    def __init__(self) -> None:
        super().__init__()
        self.run: str | None = "a"
        self.asked: list[str] = []

    async def pulse(self, job: str) -> Pulse:
        self.asked.append("pulse")
        seen = await super().pulse(job)
        return Pulse(self.run, seen.state, seen.next, seen.submitted, seen.settled)

    async def missing(self, job: str, tier: str, ordinals: object) -> set[int]:
        self.asked.append("missing")
        return await super().missing(job, tier, ordinals)  # type: ignore[arg-type]


class Bench:
    def __init__(self) -> None:
        self.store = Store()
        self.client = Client()
        self.now = 1000.0
        self.told: list[str] = []
        self.reconciler = Reconciler(
            self.store, "j", SPEC, self.client, self.told.append, lambda: self.now
        )

    async def look(self, after_s: float = 3.0) -> list[str]:
        """The losses that a look after so many seconds finds."""
        self.now += after_s
        self.client.losses.clear()
        await self.reconciler.look()
        return list(self.client.losses)


@pytest.fixture
async def bench() -> Bench:
    bench = Bench()
    await bench.store.create("j", SPEC)
    await bench.store.submit("j", SPEC, items("j", 0, 4))
    assert await bench.look() == []
    bench.store.asked.clear()
    return bench


async def test_one_short_call_a_look_while_all_is_well(bench: Bench) -> None:
    for _ in range(6):  # 18 s
        assert await bench.look() == []
    assert bench.store.asked == ["pulse"] * 6


async def test_nothing_is_asked_before_anything_is_submitted(bench: Bench) -> None:
    bench.client.submitted = Checkpoint()
    assert await bench.look() == []
    assert bench.store.asked == []


async def test_a_restart_is_noticed_once(bench: Bench) -> None:
    bench.store.run = "b"
    assert await bench.look() == ["Redis has started anew"]
    assert await bench.look(10) == []
    bench.store.run = None  # it does not tell
    assert await bench.look(10) == []


async def test_a_job_that_is_gone(bench: Bench) -> None:
    bench.store.lose("j")
    assert await bench.look() == ["Redis does not know job j any more"]


async def test_a_lost_submission(bench: Bench) -> None:
    bench.client.submitted = Checkpoint(5)
    assert await bench.look() == ["Redis has lost a part of job j"]


async def test_a_lost_end(bench: Bench) -> None:
    bench.client.ledger.add(2, "ok")
    assert await bench.look() == ["Redis has lost a part of job j"]


async def test_a_repair_comes_again_until_it_helps_but_not_at_once(bench: Bench) -> None:
    bench.store.lose("j")
    assert len(await bench.look()) == 1
    assert await bench.look(3) == []
    assert len(await bench.look(3)) == 1


@pytest.mark.parametrize("state", ["cancel", "pause"])
async def test_a_job_that_was_stopped_is_left_alone(bench: Bench, state: str) -> None:
    await getattr(bench.store, state)("j")
    bench.store.run = "b"
    bench.client.submitted = Checkpoint(5)
    assert await bench.look() == []


async def test_what_cannot_be_mended_is_told(bench: Bench) -> None:
    bench.store.run = "b"
    bench.client.error = JobError("job j is cancelled, which is final")
    assert len(await bench.look()) == 1
    (told,) = bench.told
    assert told == (
        "Redis has started anew, and that cannot be mended: job j is cancelled, which is final"
    )


async def test_open_items_are_looked_for_after_a_silence(bench: Bench) -> None:
    assert await bench.look(21) == []  # they are queued
    assert bench.store.asked == ["pulse", "missing"]
    bench.store._queues[SPEC.tier].popleft()
    assert await bench.look(21) == []  # looked for less often
    assert await bench.look(21) == ["1 items of job j are neither queued nor in work"]


async def test_what_moves_is_not_looked_for(bench: Bench) -> None:
    bench.store._queues[SPEC.tier].popleft()
    for ordinal in (1, 2, 3):
        await bench.store.settle("j", ordinal, record(ordinal))
        bench.client.ledger.add(ordinal, "ok")
        assert await bench.look(19) == []
    assert await bench.look(21) == ["1 items of job j are neither queued nor in work"]


async def test_what_has_ended_and_waits_to_be_collected_is_not_missing(bench: Bench) -> None:
    for ordinal in range(4):
        assert bench.store.take(SPEC.tier)
        await bench.store.settle("j", ordinal, record(ordinal))
    assert await bench.look(21) == []
    assert "missing" in bench.store.asked
