"""What becomes of an item by how it was handed out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fanout import Item, Record
from fanout.queue import RESUBMITTED
from fanout.wire import ErrorInfo
from fanout_workers.delivery import MOST_DELIVERIES, Deliveries, Delivery
from fanout_workers.quarantine import NoQuarantine, Poison
from fanout_workers.transport import DELIVERY_COUNT

pytestmark = pytest.mark.anyio

ITEM = Item(id="a", payload={}, job="j", ordinal=3)
AGAIN = Delivery(0, True)


class Runner:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ended: set[int | None] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: Exception | None = None

    async def run(self, kind: str, item: Item, params: Any, request_id: str) -> Record:
        self.asked.append("run")
        await self.gate.wait()
        if self.fault:
            raise self.fault
        self.ended.add(item.ordinal)
        return Record(id=item.id, status="ok")

    async def fail(self, item: Item, error: ErrorInfo) -> Record:
        self.asked.append("fail")
        return Record(id=item.id, status="failed", error=error)

    async def has_ended(self, item: Item) -> bool:
        self.asked.append("look")
        return item.ordinal in self.ended


class Apart:
    """A quarantine."""

    def __init__(self, runner: Runner, error: Exception | None = None) -> None:
        self._runner = runner
        self._error = error

    async def run(self, kind: str, item: Item, params: Any, request_id: str) -> Record:
        self._runner.asked.append("apart")
        if self._error:
            raise self._error
        return Record(id=item.id, status="ok")


@pytest.fixture
async def runner() -> Runner:
    return Runner()


def over(runner: Runner, error: Exception | None = None) -> Deliveries:
    return Deliveries(runner, Apart(runner, error))  # type: ignore[arg-type]


async def run(made: Deliveries, delivery: Delivery = Delivery()) -> Record | None:  # noqa: B008
    return await made.run("k", ITEM, {}, "id", delivery)


async def test_a_fresh_item_runs_and_nobody_is_asked(runner: Runner) -> None:
    assert await run(over(runner))
    assert runner.asked == ["run"]


async def test_what_comes_again_is_looked_up(runner: Runner) -> None:
    made = over(runner)
    assert await run(made, AGAIN)
    assert await run(made, AGAIN) is None
    assert runner.asked == ["look", "run", "look"]


async def test_what_comes_from_two_silent_workers_runs_apart(runner: Runner) -> None:
    assert await run(over(runner), Delivery(1, True))
    assert runner.asked == ["look", "run"]
    runner.asked.clear()
    runner.ended.clear()
    assert await run(over(runner), Delivery(2, True))
    assert runner.asked == ["look", "apart"]


async def test_poison_fails(runner: Runner) -> None:
    record = await run(over(runner, Poison("it ends its process")), Delivery(2, True))
    assert record is not None
    assert record.error == ErrorInfo(kind="poison", message="it ends its process")  # type: ignore[arg-type]


async def test_without_a_quarantine_it_runs_here(runner: Runner) -> None:
    assert await run(over(runner, NoQuarantine()), Delivery(2, True))
    assert await Deliveries(runner).run("k", ITEM, {}, "id", Delivery(2, False))  # type: ignore[arg-type]
    assert runner.asked == ["look", "apart", "run", "run"]


async def test_no_item_is_delivered_without_end(runner: Runner) -> None:
    record = await run(over(runner), Delivery(MOST_DELIVERIES, True))
    assert record is not None
    assert record.error is not None
    assert record.error.kind == "poison"
    assert runner.asked == ["look", "fail"]


async def test_the_twin_of_what_runs_here_waits_and_ends(runner: Runner) -> None:
    made = over(runner)
    runner.gate.clear()
    both = [asyncio.create_task(run(made)) for _ in range(3)]
    await asyncio.sleep(0)
    assert runner.asked == ["run"]
    runner.gate.set()
    assert [bool(record) for record in await asyncio.gather(*both)] == [True, False, False]
    assert runner.asked == ["run", "look", "look"]
    assert not made._running


async def test_the_twin_runs_where_the_first_one_did_not_end(runner: Runner) -> None:
    made = over(runner)
    runner.gate.clear()
    runner.fault = ValueError("x")
    both = [asyncio.create_task(run(made)) for _ in range(2)]
    await asyncio.sleep(0)
    both[0].cancel()
    await asyncio.sleep(0)
    runner.fault = None
    runner.gate.set()
    first, second = await asyncio.gather(*both, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(second, Record)


async def test_items_without_a_job_have_no_twins(runner: Runner) -> None:
    made = over(runner)
    alone = Item(id="a", payload={})
    runner.gate.clear()
    both = [asyncio.create_task(made.run("k", alone, {}, "id", Delivery())) for _ in range(2)]
    await asyncio.sleep(0)
    assert runner.asked == ["run", "run"]
    runner.gate.set()
    await asyncio.gather(*both)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, Delivery(0, False)),
        ({DELIVERY_COUNT: 2}, Delivery(2, True)),
        ({DELIVERY_COUNT: "2"}, Delivery(0, False)),
        ({DELIVERY_COUNT: -1}, Delivery(0, False)),
        ({DELIVERY_COUNT: True}, Delivery(0, False)),
        ({RESUBMITTED: True}, Delivery(0, True)),
        ({"delivery_info": {"redelivered": True}}, Delivery(0, True)),
        ({"delivery_info": {"redelivered": None}}, Delivery(0, False)),
        ({"delivery_info": None}, Delivery(0, False)),
    ],
)
def test_how_a_message_came(headers: dict[str, Any], expected: Delivery) -> None:
    assert Delivery.of({"delivery_info": {}} | headers) == expected
