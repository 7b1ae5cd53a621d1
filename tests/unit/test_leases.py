"""N over all processes: the script under every interleaving that we can think of."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import fakeredis
import pytest

from fanout import Endpoint, keys
from fanout_workers import leases
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

    async def ask(self) -> Grant:
        self.calls += 1
        demand = max(self.wants, self.in_flight)
        answer = await self.client.eval(
            leases._RENEW, 1, KEY, self.name, self.cap, self.in_flight, demand, 10_000, self.n,
            self.calls,
        )  # fmt: skip
        return Grant(*map(int, answer))

    async def renew(self) -> Grant:
        grant = await self.ask()
        self.cap = grant.cap
        return grant

    def start(self) -> None:
        self.in_flight = max(self.in_flight, min(self.cap, self.wants))


async def parts(client: fakeredis.FakeAsyncRedis) -> int:
    held = await client.hgetall(KEY)
    return sum(int(v.split()[0]) for k, v in held.items() if k.startswith(b"l:"))


async def test_one_alone_has_all_of_n_at_once(client: fakeredis.FakeAsyncRedis) -> None:
    assert await Process("a", client, 16).renew() == Grant(16, 16, 16)


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


async def test_a_dead_holder_s_part_comes_back(client: fakeredis.FakeAsyncRedis) -> None:
    await client.hset(KEY, "l:dead", "16 16 1 1")  # ran out in 1970
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
