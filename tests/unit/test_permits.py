"""Permits: never above N, first come, first served, given back exactly once."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from fanout import Endpoint
from fanout_workers.permits import Permits

pytestmark = pytest.mark.anyio


def permits_of(**concurrency: int) -> Permits:
    return Permits(
        [Endpoint(name=n, url="http://127.0.0.1:1", concurrency=c) for n, c in concurrency.items()]
    )


async def settle_down() -> None:
    """Let every task run until all of them wait for something else than their turn."""
    for _ in range(10):
        await asyncio.sleep(0)


class Holder:
    """Takes a permit and keeps it until told to let go."""

    def __init__(self, permits: Permits) -> None:
        self.endpoint: str | None = None
        self.let_go = asyncio.Event()
        self.task = asyncio.create_task(self._run(permits))

    async def _run(self, permits: Permits) -> None:
        async with permits.acquire() as permit:
            self.endpoint = permit.endpoint.name
            await self.let_go.wait()

    @property
    def holds(self) -> bool:
        return self.endpoint is not None and not self.task.done()


async def finish(holders: list[Holder]) -> None:
    for holder in holders:
        holder.let_go.set()
    await asyncio.gather(*(holder.task for holder in holders), return_exceptions=True)


async def test_a_free_permit_costs_no_wait() -> None:
    permits = permits_of(a=1)
    async with permits.acquire() as permit:
        assert permit.endpoint.name == "a"
        assert permit.waited_s >= 0
        assert permits.in_flight() == {"a": 1}
    assert permits.in_flight() == {"a": 0}


async def test_first_come_first_served() -> None:
    permits = permits_of(a=1)
    holders = [Holder(permits) for _ in range(4)]
    for turn in range(4):
        await settle_down()
        assert [holder.holds for holder in holders] == [n == turn for n in range(4)]
        holders[turn].let_go.set()
    await finish(holders)
    assert permits.in_flight() == {"a": 0}


async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    permits = permits_of(a=1)
    async with permits.acquire():
        second = Holder(permits)
        await settle_down()
    async with asyncio.timeout(10):  # the permit is on its way to `second`, which has not run
        third = Holder(permits)
        await settle_down()
    assert (second.holds, third.holds) == (True, False)
    await finish([second, third])


async def test_an_error_in_the_block_gives_the_permit_back() -> None:
    permits = permits_of(a=1)
    with pytest.raises(ZeroDivisionError):
        async with permits.acquire():
            raise ZeroDivisionError
    assert permits.in_flight() == {"a": 0}


async def test_cancelled_while_holding() -> None:
    permits = permits_of(a=1)
    holders = [Holder(permits), Holder(permits)]
    await settle_down()
    holders[0].task.cancel()
    await settle_down()
    assert holders[1].holds
    assert permits.in_flight() == {"a": 1}
    await finish(holders)


async def test_cancelled_while_waiting() -> None:
    permits = permits_of(a=1)
    holders = [Holder(permits) for _ in range(3)]
    await settle_down()
    holders[1].task.cancel()
    await settle_down()
    assert permits.in_flight() == {"a": 1}
    holders[0].let_go.set()
    await settle_down()
    assert holders[2].holds
    await finish(holders)
    assert permits.in_flight() == {"a": 0}


async def test_cancelled_after_the_permit_was_handed_over_and_before_it_was_seen() -> None:
    permits = permits_of(a=1)
    async with permits.acquire():
        first, second = Holder(permits), Holder(permits)
        await settle_down()
    first.task.cancel()  # it has the permit, and its task has not run since
    await settle_down()
    assert first.endpoint is None
    assert second.holds
    assert permits.in_flight() == {"a": 1}
    await finish([second])
    assert permits.in_flight() == {"a": 0}


async def test_the_limit_goes_up_at_once() -> None:
    permits = permits_of(a=1)
    holders = [Holder(permits) for _ in range(4)]
    await settle_down()
    permits.set_limit("a", 3)
    await settle_down()
    assert [holder.holds for holder in holders] == [True, True, True, False]
    assert permits.limits() == {"a": 3}
    await finish(holders)


async def test_the_limit_goes_down_as_requests_finish() -> None:
    permits = permits_of(a=3)
    holders = [Holder(permits) for _ in range(5)]
    await settle_down()
    permits.set_limit("a", 1)
    assert permits.in_flight() == {"a": 3}
    for finished in range(2):
        holders[finished].let_go.set()
        await settle_down()
        assert not holders[3].holds
    assert permits.in_flight() == {"a": 1}
    holders[2].let_go.set()
    await settle_down()
    assert holders[3].holds
    assert permits.in_flight() == {"a": 1}
    await finish(holders)


async def test_a_limit_of_zero_stops_and_a_higher_one_starts() -> None:
    permits = permits_of(a=1)
    permits.set_limit("a", 0)
    holder = Holder(permits)
    await settle_down()
    assert not holder.holds
    permits.set_limit("a", 1)
    await settle_down()
    assert holder.holds
    await finish([holder])


async def test_the_least_loaded_endpoint_by_its_share() -> None:
    permits = permits_of(small=2, large=6)
    async with AsyncExitStack() as stack:
        names = [
            (await stack.enter_async_context(permits.acquire())).endpoint.name for _ in range(8)
        ]
        assert names[:4] == ["small", "large", "large", "large"]
        assert (names.count("small"), names.count("large")) == (2, 6)
        waiting = Holder(permits)
        await settle_down()
        assert not waiting.holds
    await settle_down()
    assert waiting.holds
    await finish([waiting])


@pytest.mark.parametrize("seed", range(5))
async def test_a_random_walk_keeps_the_invariant(seed: int) -> None:
    rng = random.Random(seed)
    permits = permits_of(a=3, b=2)
    limits = {"a": 3, "b": 2}
    highest = dict(limits)
    live: list[Holder] = []
    for _ in range(600):
        match rng.choice(["take", "take", "give", "give", "cancel", "limit", "breathe"]):
            case "take":
                live.append(Holder(permits))
            case "give" if live:
                rng.choice(live).let_go.set()
            case "cancel" if live:
                rng.choice(live).task.cancel()
            case "limit":
                name = rng.choice(["a", "b"])
                limits[name] = rng.randint(0, 4)
                permits.set_limit(name, limits[name])
            case _:
                await asyncio.sleep(0)
        counted = permits.in_flight()
        for name, limit in limits.items():
            # What was in flight when the limit went down may finish, but nothing may join it.
            highest[name] = max(limit, min(highest[name], counted[name]))
            assert 0 <= counted[name] <= highest[name]
        if rng.random() < 0.3:
            await settle_down()
            live = [holder for holder in live if not holder.task.done()]
            held = [holder.endpoint for holder in live if holder.holds]
            assert permits.in_flight() == {name: held.count(name) for name in limits}
            if len(held) < len(live):  # somebody waits, so nothing is free
                assert all(permits.in_flight()[name] >= limits[name] for name in limits)
    for name in limits:
        permits.set_limit(name, 4)
    while live:
        await finish(live)
        live = [holder for holder in live if not holder.task.done()]
    assert permits.in_flight() == {"a": 0, "b": 0}
