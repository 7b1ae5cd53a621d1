"""N over all processes: the script under every interleaving that we can think of."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import fakeredis
import pytest
from fakeredis.commands_mixins import server_mixin

from fanout import Endpoint, keys
from fanout_workers import leases
from fanout_workers.lease_script import RENEW
from fanout_workers.leases import Grant, Leases
from fanout_workers.permits import Fenced, Permits

pytestmark = pytest.mark.anyio

NAME = "spark"
KEY = keys.endpoint(NAME)


@pytest.fixture
async def client() -> AsyncIterator[fakeredis.FakeAsyncRedis]:
    connected = fakeredis.FakeAsyncRedis()
    yield connected
    await connected.aclose()


TTL, MARGIN, WINDOW, GRACE = 10_000, 1_000, 3_000, 60_000


@dataclass
class Process:
    """One process as the script sees it: it keeps to its cap, and calls when it likes."""

    name: str
    client: fakeredis.FakeAsyncRedis
    n: int
    cap: int = 0
    in_flight: int = 0
    wants: int = 0
    calls: int = 0
    spare: int = 1
    low: int = 0
    grace: int = 0

    async def ask(self, load: int = -1, since: int = 0, *ended: str) -> Grant:
        self.calls += 1
        demand = max(self.wants, self.in_flight)
        answer = await self.client.eval(
            RENEW, 1, KEY, self.name, self.cap, self.in_flight, demand, self.spare, self.low,
            self.calls, self.n, TTL, MARGIN, WINDOW, self.grace, load, since,
            *ended,
        )  # fmt: skip
        return Grant.of(answer)

    async def renew(self, load: int = -1, since: int = 0, *ended: str) -> Grant:
        grant = await self.ask(load, since, *ended)
        self.cap = grant.cap
        return grant

    def start(self) -> None:
        self.in_flight = max(self.in_flight, min(self.cap, self.wants))


async def parts(client: fakeredis.FakeAsyncRedis) -> int:
    held = await client.hgetall(KEY)
    return sum(int(v.split()[0]) for k, v in held.items() if k.startswith(b"l:"))


async def test_one_alone_has_all_of_n_at_once(client: fakeredis.FakeAsyncRedis) -> None:
    grant = await Process("a", client, 16).renew()
    assert (grant.n, grant.part, grant.target, grant.look) == (16, 16, 16, 0)


async def test_two_share_and_never_exceed_n(client: fakeredis.FakeAsyncRedis) -> None:
    a, b = Process("a", client, 16, wants=100), Process("b", client, 16, wants=100)
    await a.renew()
    a.start()
    assert a.in_flight == 16
    assert (await b.renew()).cap == 0
    assert (await a.renew()).cap == 8
    assert (await b.renew()).cap == 0  # a's requests are still in flight
    a.in_flight = 11
    await a.renew()
    assert (await b.renew()).cap == 5
    a.in_flight = 8
    await a.renew()
    assert (await b.renew()).cap == 8


async def test_what_one_does_not_need_the_other_has(client: fakeredis.FakeAsyncRedis) -> None:
    a, b = Process("a", client, 16, wants=3), Process("b", client, 16, wants=100)
    for process in (a, b, a, a, b):  # lowered first, recorded with the next call
        await process.renew()
        process.start()
    assert (a.cap, b.cap) == (3, 13)


async def test_a_single_permit_goes_to_who_wants_it(client: fakeredis.FakeAsyncRedis) -> None:
    a, b = Process("a", client, 1), Process("b", client, 1, wants=1)
    for process in (a, b, a, a, b):
        await process.renew()
    assert (a.cap, b.cap) == (0, 1)


async def test_n_set_by_hand_goes_before_the_configuration(
    client: fakeredis.FakeAsyncRedis,
) -> None:
    a = Process("a", client, 16, wants=100)
    await a.renew()
    a.start()
    await client.hset(KEY, "n", 4)
    assert (await a.renew()).cap == 4
    assert await parts(client) == 16  # what is in flight counts until it has finished
    a.in_flight = 4
    await a.renew()
    assert await parts(client) == 4
    await client.hset(KEY, "n", 32)
    assert (await a.renew()).cap == 32


async def test_n_of_the_controller_goes_before_the_configuration_and_after_the_hand(
    client: fakeredis.FakeAsyncRedis,
) -> None:
    a = Process("a", client, 16, wants=100)
    await client.hset(KEY, keys.AUTO, 24)
    assert (await a.renew()).n == 24
    await client.hset(KEY, keys.CONCURRENCY, 8)
    assert (await a.renew()).n == 8
    await client.hdel(KEY, keys.CONCURRENCY)
    assert (await a.renew()).n == 24


async def test_who_cannot_ask_the_endpoint_holds_nothing(client: fakeredis.FakeAsyncRedis) -> None:
    a, b = Process("a", client, 16, wants=3), Process("b", client, 16)
    await a.renew()
    a.wants, a.spare = 0, 0  # its circuit is open
    for process in (a, a, b):
        await process.renew()
    assert (a.cap, b.cap) == (0, 16)


async def test_a_dead_holder_s_part_comes_back(client: fakeredis.FakeAsyncRedis) -> None:
    await client.hset(KEY, "l:dead", "16 16 1 1 0 1 0")  # ran out in 1970
    assert (await Process("a", client, 16, wants=9).renew()).cap == 16
    assert await client.hget(KEY, "l:dead") is None


async def test_a_late_call_does_not_shrink_what_a_later_one_has_granted(
    client: fakeredis.FakeAsyncRedis,
) -> None:
    a, late = Process("a", client, 16), Process("a", client, 16)
    await a.renew()
    await a.renew()
    late.wants = 0
    await client.hset(KEY, "n", 1)
    await late.ask()  # numbered 1, while 2 has been answered
    assert await parts(client) == 16


@pytest.mark.parametrize("seed", range(20))
async def test_in_flight_never_exceeds_n(client: fakeredis.FakeAsyncRedis, seed: int) -> None:
    rng = random.Random(seed)
    n = rng.choice([1, 2, 7, 64])
    living = [Process(f"p{number}", client, n) for number in range(rng.randint(2, 6))]
    for step in range(300):
        process = rng.choice(living)
        process.wants = rng.choice([0, 1, n // 3, n, 3 * n])
        match rng.randrange(5):
            case 0 | 1:
                await process.renew()
            case 2:
                await process.ask()  # the answer is lost on its way
            case 3:
                process.in_flight = rng.randint(0, process.in_flight)
            case _ if process.in_flight == 0 and rng.random() < 0.1:
                living.remove(process)  # a clean stop gives its part back
                await client.hdel(KEY, f"l:{process.name}")
                living.append(Process(f"q{step}", client, n))
        process.start()
        assert sum(p.in_flight for p in living) <= n
        assert sum(p.cap for p in living if p.in_flight <= p.cap) <= n


@pytest.mark.parametrize("seed", range(5))
async def test_with_backlog_all_of_n_is_used(client: fakeredis.FakeAsyncRedis, seed: int) -> None:
    rng = random.Random(seed)
    n = 64
    living = [Process(f"p{number}", client, n, wants=n) for number in range(4)]
    for _ in range(4):
        for process in rng.sample(living, 4):
            await process.renew()
            process.in_flight = min(process.in_flight, process.cap)  # what is over has finished
            process.start()
    assert [process.in_flight for process in living] == [16] * 4


class Clock:
    """Redis's clock, in the place of the module `time`."""

    now_ms = 1_000_000

    def time(self) -> float:
        return self.now_ms / 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(server_mixin, "time", made)
    return made


async def ghosts(client: fakeredis.FakeAsyncRedis) -> dict[str, int]:
    held = await client.hgetall(KEY)
    return {k[2:].decode(): int(v.split()[0]) for k, v in held.items() if k.startswith(b"g:")}


async def test_a_silent_holder_leaves_a_ghost_until_its_requests_must_have_ended(
    client: fakeredis.FakeAsyncRedis, clock: Clock
) -> None:
    a = Process("a", client, 16, wants=10, grace=GRACE)
    b = Process("b", client, 16, wants=16, grace=GRACE)
    for process in (a, b, a, b):
        await process.renew()
        process.start()
    clock.now_ms += TTL - 1
    await b.renew()
    clock.now_ms += 1  # a is silent, and its lease is over
    await b.renew()
    assert b.cap + (await ghosts(client))["a"] == 16
    clock.now_ms += GRACE
    await b.renew()
    assert b.cap == 16
    assert not await ghosts(client)


async def test_without_metrics_a_lease_s_end_is_the_end(
    client: fakeredis.FakeAsyncRedis, clock: Clock
) -> None:
    a, b = Process("a", client, 16, wants=16), Process("b", client, 16, wants=16)
    await a.renew()
    clock.now_ms += TTL
    assert (await b.renew()).cap == 16


async def test_a_look_that_shows_nothing_of_it_lays_the_ghost(
    client: fakeredis.FakeAsyncRedis, clock: Clock
) -> None:
    a = Process("a", client, 16, wants=16, grace=GRACE)
    b = Process("b", client, 16, wants=16, grace=GRACE)
    await a.renew()
    clock.now_ms += TTL - MARGIN
    grant = await b.renew()
    assert (grant.cap, grant.look) == (0, 1)  # its lease is nearly over: somebody shall look
    clock.now_ms += 100
    await b.renew(load=0, since=grant.now)
    assert b.cap == 0  # it may be well, and only away from Redis
    clock.now_ms += MARGIN
    assert (await b.renew()).cap == 16


async def test_a_look_before_it_fenced_itself_lays_no_ghost(
    client: fakeredis.FakeAsyncRedis, clock: Clock
) -> None:
    a = Process("a", client, 16, wants=16, grace=GRACE)
    b = Process("b", client, 16, wants=16, grace=GRACE)
    await a.renew()
    clock.now_ms += TTL - MARGIN - 1
    grant = await b.renew()
    await b.renew(load=0, since=grant.now)
    clock.now_ms += MARGIN + 1
    assert (await b.renew()).cap == 0
    assert await ghosts(client) == {"a": 16}


async def test_one_looks_at_a_time_and_another_takes_over(
    client: fakeredis.FakeAsyncRedis, clock: Clock
) -> None:
    await Process("dead", client, 16, wants=16, grace=GRACE).renew()
    b, c = Process("b", client, 16), Process("c", client, 16)
    clock.now_ms += TTL
    assert [(await p.renew()).look for p in (b, c, b)] == [1, 0, 1]
    clock.now_ms += 2 * MARGIN
    assert (await c.renew()).look == 1


async def test_what_is_being_aborted_after_a_fence_gives_no_quota(
    client: fakeredis.FakeAsyncRedis, clock: Clock
) -> None:
    a = Process("a", client, 16, wants=8, grace=GRACE)
    b = Process("b", client, 16, wants=16, grace=GRACE)
    for process in (a, b, a, a, b):
        await process.renew()
        process.start()
    assert (a.in_flight, b.in_flight) == (8, 8)
    clock.now_ms += TTL - 1
    await b.renew()
    clock.now_ms += 2
    b.low = 8
    grant = await b.renew()
    await b.renew(load=10, since=grant.now)  # 8 of b, and 2 are left of a
    assert await ghosts(client) == {"a": 2}
    assert b.cap == 14
    b.start()
    a.cap = 0  # it goes on, and aborts its 8 requests
    assert (await a.renew()).cap == 0
    assert await parts(client) == 8 + 14  # but they are counted


async def test_the_part_of_one_that_is_known_to_have_ended_comes_back_before_its_lease_ends(
    client: fakeredis.FakeAsyncRedis, clock: Clock
) -> None:
    a, b = Process("a", client, 16, wants=16), Process("b", client, 16, wants=16)
    await a.renew()
    clock.now_ms += 2 * MARGIN
    assert (await b.renew()).silent == ()
    clock.now_ms += 1
    grant = await b.renew()
    assert (grant.silent, grant.cap) == (("a",), 0)
    grant = await b.renew(-1, 0, "a")
    assert (grant.silent, grant.cap) == ((), 16)


async def test_one_that_has_ended_leaves_a_ghost_until_a_look_shows_nothing_of_it(
    client: fakeredis.FakeAsyncRedis, clock: Clock
) -> None:
    a = Process("a", client, 16, wants=16, grace=GRACE)
    b = Process("b", client, 16, wants=16, grace=GRACE)
    await a.renew()
    clock.now_ms += 2 * MARGIN + 1
    grant = await b.renew(-1, 0, "a")
    assert (grant.look, grant.cap) == (1, 0)
    clock.now_ms += 300
    assert (await b.renew(0, grant.now)).cap == 16


@dataclass
class Worker(Process):
    """A whole worker: it may be stopped, killed, cut off from Redis, and comes back."""

    at_server: int = 0
    fence_at: int = 0
    looked: tuple[int, int] | None = None
    lows: deque[tuple[int, int]] = field(default_factory=deque)
    low_now: int = 0
    state: str = "well"
    fenced: bool = False

    def go_on(self, now: int) -> None:
        """What needs no Redis: fence itself in time, and refill."""
        if self.state == "stopped":
            return
        if self.fenced:
            self.in_flight, self.fenced = 0, False  # the aborted ones have been unwound
        if now >= self.fence_at:
            self.cap = self.low_now = self.at_server = 0
            self.fenced = True
            return
        self.start()
        self.at_server = self.in_flight
        self.low_now = min(self.low_now, self.in_flight)  # refilled at once: no dip between

    async def call(self, now: int, at_server: int) -> None:
        """Renew the lease, and look at the server where that is wanted."""
        if self.state != "well":
            return
        self.lows.append((now, min(self.low_now, self.in_flight)))
        while self.lows[0][0] < now - WINDOW:
            self.lows.popleft()
        self.low = min(low for _, low in self.lows)
        self.low_now = self.in_flight
        grant = await self.renew(*(self.looked or ()))
        self.fence_at = now + TTL - MARGIN
        self.looked = (at_server, grant.now) if grant.look else None

    def finish(self, count: int) -> None:
        """The server has answered so many; a stopped process does not see it."""
        self.at_server -= min(count, self.at_server)
        if self.state != "stopped" and not self.fenced:
            self.in_flight = self.at_server


@pytest.mark.parametrize("seed", range(16))
async def test_n_holds_at_the_server_whatever_happens_to_its_workers(
    client: fakeredis.FakeAsyncRedis, clock: Clock, seed: int
) -> None:
    """Stopped workers' requests go on at the server, killed ones' are aborted."""
    rng = random.Random(seed)
    n = rng.choice([4, 16, 64])

    def worker(name: str) -> Worker:
        return Worker(name, client, n, wants=3 * n, grace=GRACE, lows=deque([(clock.now_ms, 0)]))

    workers = [worker(f"w{number}") for number in range(rng.randint(2, 5))]

    async def pass_by() -> int:
        """Some time passes; returns what is in flight at the server."""
        clock.now_ms += rng.randint(50, 400)
        for each in workers:
            each.finish(rng.choice([0] * (40 if each.state == "stopped" else 2) + [1, 2]))
            each.go_on(clock.now_ms)
        at_server = sum(w.at_server for w in workers)
        await rng.choice(workers).call(clock.now_ms, at_server)
        return at_server

    for step in range(700):
        assert await pass_by() <= n
        one = rng.choice(workers)
        match rng.randrange(60):
            case 0 if one.state == "well" and len(workers) > 2:
                one.state = rng.choice(["stopped", "cut off"])
            case 1 | 4 | 5 | 6:
                one.state = "well"  # goes on, as if no time had passed
            case 2 if len(workers) > 2:
                workers.remove(one)  # SIGKILL: the server sees its connections close
            case 3 if len(workers) < 6:
                workers.append(worker(f"x{step}"))
    for one in workers:
        one.state = "well"
    seen = [await pass_by() for _ in range(200)]
    assert max(seen) == n
    assert seen[-1] > 0.9 * n - 1


def endpoint(n: int) -> Endpoint:
    return Endpoint(name=NAME, url="http://127.0.0.1:1", concurrency=n)


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.001)


async def test_permits_follow_the_lease(
    client: fakeredis.FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EVERY_S", 0.02)
    monkeypatch.setattr(leases, "HUNGRY_S", 0.005)
    async with AsyncExitStack() as stack:
        held = []
        for holder in ("a", "b"):
            permits = Permits([endpoint(8)])
            lease = Leases(client, permits, (endpoint(8),), holder)
            await lease.open()
            stack.push_async_callback(lease.close)
            held.append(permits)
        first, second = held
        await until(lambda: (first.limits()[NAME], second.limits()[NAME]) == (4, 4))

        async def hold(permits: Permits) -> None:
            async with permits.acquire():
                await asyncio.Event().wait()

        busy = [asyncio.create_task(hold(first)) for _ in range(20)]
        await until(lambda: first.in_flight()[NAME] == 8)
        assert second.limits()[NAME] == 0
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        await until(lambda: second.limits()[NAME] > 0)
    assert await parts(client) == 0  # a clean stop gives its part back at once


async def test_a_process_that_cannot_renew_aborts_its_own_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = fakeredis.FakeServer()
    client = fakeredis.FakeAsyncRedis(server=server)
    monkeypatch.setattr(leases, "TTL_S", 0.2)
    monkeypatch.setattr(leases, "MARGIN_S", 0.1)
    monkeypatch.setattr(leases, "EVERY_S", 0.02)
    monkeypatch.setattr(leases, "HUNGRY_S", 0.005)
    permits = Permits([endpoint(2)])
    lease = Leases(client, permits, (endpoint(2),), "a")
    await lease.open()

    async def hold() -> None:
        async with permits.acquire():
            await asyncio.Event().wait()

    busy = [asyncio.create_task(hold()) for _ in range(2)]
    await until(lambda: permits.in_flight()[NAME] == 2)
    server.connected = False
    outcomes = await asyncio.gather(*busy, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Fenced, Fenced]
    assert permits.in_flight()[NAME] == 0
    assert permits.limits()[NAME] == 0
    server.connected = True
    await until(lambda: permits.limits()[NAME] == 2)  # and goes on when Redis is back
    await lease.close()
    await client.aclose()


async def test_no_error_ends_the_renewals(
    client: fakeredis.FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "EVERY_S", 0.02)
    monkeypatch.setattr(leases, "HUNGRY_S", 0.005)
    permits = Permits([endpoint(2)])
    lease = Leases(client, permits, (endpoint(2),), "a")
    await lease.open()
    renew, calls = lease._renew, 0

    async def broken(**given: object) -> object:
        nonlocal calls
        calls += 1
        if calls <= 2:
            raise RuntimeError("the handler is closed")
        return await renew(**given)

    lease._renew = broken
    await until(lambda: calls > 4)
    assert permits.limits()[NAME] == 2
    await lease.close()


async def test_a_redis_that_has_lost_the_leases_lets_nobody_grow_for_a_lease(
    client: fakeredis.FakeAsyncRedis, clock: Clock
) -> None:
    busy, other, idle = (Process(name, client, 8, wants=8) for name in "abc")
    for _ in range(6):
        for process in (busy, other):
            await process.renew()
    idle.wants = 0
    await idle.renew()
    caps = busy.cap, other.cap
    assert sum(caps) == 8
    await client.delete(KEY)
    for _ in range(3):
        for process in (busy, other, idle):
            await process.renew()
            assert busy.cap + other.cap + idle.cap <= 8
    assert (busy.cap, other.cap) == caps
    # One that is dead and never calls again leaves its part when its lease must have ended.
    await client.delete(KEY)
    await busy.renew()
    assert busy.cap == caps[0]
    clock.now_ms += TTL + 1
    await busy.renew()
    assert busy.cap == 8


async def test_a_redis_that_has_lost_the_last_of_the_leases_lets_nobody_grow(
    client: fakeredis.FakeAsyncRedis,
) -> None:
    first, second, third = (Process(name, client, 8, spare=0) for name in "abc")
    first.wants = 8
    for _ in range(3):
        for process in (first, second, third):
            await process.renew()
    assert first.cap == 8
    before = await client.hgetall(KEY)
    first.wants, second.wants, third.wants = 0, 8, 8
    for _ in range(4):
        for process in (first, second, third):
            await process.renew()
    assert (first.cap, second.cap, third.cap) == (0, 4, 4)
    await client.delete(KEY)
    await client.hset(KEY, mapping=before)
    first.wants = 8
    for _ in range(3):
        for process in (second, first, third):
            await process.renew()
            assert first.cap + second.cap + third.cap <= 8


def test_who_fetches_nothing_wants_no_permit_without_a_request() -> None:
    permits = Permits([endpoint(8)])
    worker = leases._Lease(endpoint(8), permits.load(NAME))
    child = leases._Lease(endpoint(8), permits.load(NAME), fetches=False)
    assert worker.demand(0, 0.0) == (1, 1)
    assert child.demand(0, 0.0) == (0, 0)
    assert child.demand(3, 0.0) == worker.demand(3, 0.0) == (3, 1)
