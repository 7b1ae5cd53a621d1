"""Permits: never above N, first come, first served, given back exactly once."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

import pytest

from fanout import Endpoint, Failure, Kind
from fanout_workers.permits import Fenced, Permits, Unneeded

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


async def test_a_fence_aborts_what_is_in_flight_there() -> None:
    permits = permits_of(a=1, b=1)
    both = [Holder(permits), Holder(permits)]
    await settle_down()
    holders = {one.endpoint: one for one in both}
    permits.fence("a")
    permits.fence("a")  # twice: it is aborted once
    await settle_down()
    assert isinstance(holders["a"].task.exception(), Fenced)
    assert holders["a"].task.cancelling() == 0
    assert holders["b"].holds
    assert permits.in_flight() == {"a": 0, "b": 1}
    await finish([holders["b"]])


async def test_a_cancellation_beside_a_fence_stays_one() -> None:
    permits = permits_of(a=1)
    holder = Holder(permits)
    await settle_down()
    holder.task.cancel()
    permits.fence("a")
    await settle_down()
    assert holder.task.cancelled()
    assert permits.in_flight() == {"a": 0}


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


async def take(permits: Permits, stack: AsyncExitStack, **how: Any) -> str:
    return (await stack.enter_async_context(permits.acquire(**how))).endpoint.name


async def test_a_retry_goes_to_another_endpoint_where_there_is_room() -> None:
    permits = permits_of(a=2, b=2)
    async with AsyncExitStack() as stack:
        assert [await take(permits, stack, avoid="a") for _ in range(3)] == ["b", "b", "a"]


async def test_a_retry_that_waits_lets_those_pass_that_can_go_where_it_failed() -> None:
    permits = permits_of(a=1, b=1)
    async with AsyncExitStack() as stack:
        assert {await take(permits, stack) for _ in range(2)} == {"a", "b"}
        avoiding = asyncio.create_task(take(permits, stack, avoid="a"))
        other = asyncio.create_task(take(permits, stack))
        await settle_down()
        permits.set_limit("a", 2)
        await settle_down()
        assert (avoiding.done(), other.done()) == (False, True)
        permits.set_limit("a", 3)  # nobody else waits: better there than not at all
        await settle_down()
        assert await avoiding == "a"


async def test_an_open_circuit_gives_no_permits_and_the_other_endpoint_has_them() -> None:
    permits = permits_of(a=4, b=2)
    permits.load("a").circuit.trip("it is down")
    async with AsyncExitStack() as stack:
        assert [await take(permits, stack) for _ in range(2)] == ["b", "b"]
        waiting = asyncio.create_task(take(permits, stack))
        await settle_down()
        assert not waiting.done()
        assert permits.quota == 2
        waiting.cancel()
        await settle_down()


async def test_half_open_one_probe_and_then_all() -> None:
    now = 0.0
    permits = Permits([Endpoint(name="a", url="http://127.0.0.1:1", concurrency=3)], lambda: now)
    circuit = permits.load("a").circuit
    circuit.trip("it is down")
    holders = [Holder(permits) for _ in range(4)]
    now = 60.0
    circuit.looked_at(None)
    await settle_down()
    assert [holder.holds for holder in holders] == [True, False, False, False]
    assert permits.quota == 1
    circuit.answered(circuit.epoch)
    await settle_down()
    assert [holder.holds for holder in holders] == [True, True, True, False]
    await finish(holders)


async def test_a_probe_that_is_cancelled_lets_another_probe() -> None:
    now = 0.0
    permits = Permits([Endpoint(name="a", url="http://127.0.0.1:1", concurrency=3)], lambda: now)
    permits.load("a").circuit.trip("it is down")
    holders = [Holder(permits) for _ in range(2)]
    now = 60.0
    permits.load("a").circuit.looked_at(None)
    await settle_down()
    holders[0].task.cancel()
    await settle_down()
    assert holders[1].holds
    await finish(holders)


async def test_a_permit_says_how_its_request_ended() -> None:
    permits = permits_of(a=1)
    for _ in range(5):
        async with permits.acquire() as permit:
            permit.failed(Failure(Kind.CONNECT, "refused"))
    assert permits.load("a").circuit.state == "open"


async def test_no_permit_after_the_lease_also_if_nobody_has_said_that_it_is_over() -> None:
    now = 0.0
    permits = Permits([Endpoint(name="a", url="http://127.0.0.1:1", concurrency=3)], lambda: now)
    permits.set_limit("a", 3, valid_until=9.0)
    first = Holder(permits)
    await settle_down()
    now = 9.0  # the process was stopped, and the reply came meanwhile
    second = Holder(permits)
    await finish([first])
    await settle_down()
    assert not second.holds
    permits.set_limit("a", 3, valid_until=20.0)
    await settle_down()
    assert second.holds
    await finish([second])


async def test_what_is_fresh_is_sent_back_and_the_rest_waits() -> None:
    permits = permits_of(a=1)
    async with AsyncExitStack() as stack:
        await take(permits, stack)
        fresh = asyncio.create_task(take(permits, stack, fresh=lambda: True))
        other = asyncio.create_task(take(permits, stack, fresh=lambda: False))
        await settle_down()
        assert permits.waiting == 2
        assert permits.send_back() == 1
        await settle_down()
        with pytest.raises(Unneeded):
            await fresh
        assert permits.waiting == 1
        permits.set_limit("a", 2)
        assert await other == "a"


async def test_the_fewest_in_flight_are_not_those_between_two_requests() -> None:
    permits = permits_of(a=2)
    holders = [Holder(permits) for _ in range(4)]
    await settle_down()
    permits.load("a").take_low()
    await finish(holders[:2])
    await settle_down()
    assert permits.load("a").take_low() == 2  # each was followed by the next at once
    await finish(holders[2:])
    assert permits.load("a").take_low() == 0


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
