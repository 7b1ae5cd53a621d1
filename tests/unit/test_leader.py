"""Who decides on N, from what, and what becomes of it; Redis is a fake, the polls are called."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fakeredis
import httpx
import pytest

from fanout import Endpoint, Failure, Kind, Reply, Usage, keys
from fanout.store import RedisStore
from fanout_workers.leader import Crowd, Leader, Leaders
from fanout_workers.server_page import ServerPage
from fanout_workers.tally import Tally, Totals

pytestmark = pytest.mark.anyio

ENDPOINT = Endpoint(name="spark", url="http://spark:8000", concurrency="auto", max_concurrency=100)


class Server:
    """A server whose metrics the tests set."""

    def __init__(self) -> None:
        self.running, self.waiting, self.tokens = 0, 0, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            200,
            text=f"vllm:num_requests_running {self.running}\n"
            f"vllm:num_requests_waiting {self.waiting}\n"
            f"vllm:generation_tokens_total {self.tokens}\n",
        )


class Worker:
    """A process with its counters and its would-be leader."""

    def __init__(self, name: str, client: fakeredis.FakeAsyncRedis, server: Server) -> None:
        self.now = 0.0
        self.tally = Tally(False, lambda: self.now)
        self.store = RedisStore(client)
        transport = httpx.MockTransport(server)
        self.leader = Leader(
            client, self.store, ENDPOINT, self.tally, ServerPage(ENDPOINT, transport), name, 5.0
        )

    async def poll(self, now: float) -> int | None:
        self.now = now
        decision = await self.leader.poll(now)
        return None if decision is None else decision.n


@pytest.fixture
async def client() -> AsyncIterator[fakeredis.FakeAsyncRedis]:
    connected = fakeredis.FakeAsyncRedis()
    yield connected
    await connected.aclose()


async def n_of(client: fakeredis.FakeAsyncRedis) -> int | None:
    return (await RedisStore(client).endpoint("spark")).auto


async def test_one_of_two_leads_and_says_where_it_starts(client: fakeredis.FakeAsyncRedis) -> None:
    server = Server()
    one, other = Worker("a", client, server), Worker("b", client, server)
    await one.poll(0)
    await other.poll(0)
    assert (one.leader.leads, other.leader.leads) == (True, False)
    assert await n_of(client) == 16
    (decided,) = await one.store.decisions("spark")
    assert decided.reason.startswith("took over")
    assert decided.by == "a"


async def test_the_leader_sees_what_both_have_in_flight(client: fakeredis.FakeAsyncRedis) -> None:
    server = Server()
    one, other = Worker("a", client, server), Worker("b", client, server)
    for worker in (one, other):
        for _ in range(8):
            worker.tally.start("extract")
    server.running = 16
    n: int | None = None
    for poll in range(6):
        server.tokens = 500 * poll
        await other.poll(5.0 * poll)
        n = await one.poll(5.0 * poll) or n
    # Alone, either has half of N in flight, which teaches nothing; both together fill it.
    assert other.leader.leads
    assert await n_of(client) == 20


@pytest.mark.parametrize(("duration_s", "pause_s"), [(120.0, 5.0), (8.0, 2.0), (0.1, 0.5)])
async def test_short_requests_are_looked_at_more_often(
    client: fakeredis.FakeAsyncRedis, duration_s: float, pause_s: float
) -> None:
    worker = Worker("a", client, Server())
    await worker.poll(0)
    assert worker.leader.pause_s == 5.0  # nothing is known yet
    flight = worker.tally.start("extract")
    worker.now = duration_s
    flight.answered(Reply("x", "stop", Usage(completion=2), None, duration_s))
    await worker.poll(duration_s)
    assert worker.leader.pause_s == pytest.approx(pause_s)
    await worker.poll(duration_s + 5)
    assert worker.leader.pause_s == pytest.approx(pause_s)  # nothing has ended since


async def test_a_dead_leader_is_followed_from_the_n_in_force(
    client: fakeredis.FakeAsyncRedis,
) -> None:
    server = Server()
    one, other = Worker("a", client, server), Worker("b", client, server)
    for _ in range(16):
        one.tally.start("extract")
    server.running = 16
    for poll in range(6):
        server.tokens = 500 * poll
        await one.poll(5.0 * poll)
        await other.poll(5.0 * poll)
    assert await n_of(client) == 20
    await client.delete(keys.leader("spark"))  # the lock has run out
    await other.poll(30.0)
    assert other.leader.leads
    assert await n_of(client) == 20
    await one.poll(30.0)
    assert not one.leader.leads
    # What the dead one said last does not count for ever.
    for poll in range(7, 14):
        await other.poll(5.0 * poll)
    assert set(await client.hgetall(keys.seen("spark"))) == {b"b"}


async def test_a_clean_end_hands_over_at_once(client: fakeredis.FakeAsyncRedis) -> None:
    server = Server()
    one, other = Worker("a", client, server), Worker("b", client, server)
    await one.poll(0)
    await other.poll(0)
    await other.leader.close()  # it is not the leader: nothing happens
    await other.poll(5)
    assert not other.leader.leads
    await one.leader.close()
    await other.poll(10)
    assert other.leader.leads


async def test_an_n_set_by_hand_counts(client: fakeredis.FakeAsyncRedis) -> None:
    one = Worker("a", client, Server())
    await one.poll(0)
    await one.store.set_concurrency("spark", 5)
    assert await one.poll(5) is None
    assert not one.leader.leads
    await one.store.set_concurrency("spark", None)
    await one.poll(10)
    assert one.leader.leads


async def test_a_refusal_seen_by_another_worker_lowers_n(client: fakeredis.FakeAsyncRedis) -> None:
    server = Server()
    one, other = Worker("a", client, server), Worker("b", client, server)
    await one.poll(0)
    await other.poll(0)
    refused = other.tally.start("extract")
    refused.failed(Failure(Kind.OVERLOAD, "503", retry_after=20.0))
    refused.close()
    await other.poll(5)
    assert await one.poll(5) == 12
    (decided, *_) = await one.store.decisions("spark")
    assert decided.reason == "the server refuses work"
    assert decided.inputs["overloads"] == 1


async def test_a_later_run_starts_near_what_was_found(client: fakeredis.FakeAsyncRedis) -> None:
    one = Worker("a", client, Server())
    await client.hset(keys.memory("spark"), "extract", b'{"n": 60}')
    one.tally.start("extract")
    await one.poll(0)
    assert await n_of(client) == 42
    again = Worker("b", client, Server())
    await one.leader.close()
    again.tally.start("review")  # another kind of work: nothing is known of it
    await client.delete(f"{keys.leader('spark')}:held")
    await again.poll(5)
    assert await n_of(client) == 16


async def test_an_endpoint_with_a_fixed_n_forgets_the_controller_s(
    client: fakeredis.FakeAsyncRedis,
) -> None:
    one = Worker("a", client, Server())
    await one.poll(0)
    assert await n_of(client) == 16
    fixed = ENDPOINT.model_copy(update={"concurrency": 64})
    leaders = Leaders(
        client,
        one.store,
        (fixed,),
        {"spark": Tally(False)},
        {},
        "b",
        5.0,
    )
    await leaders.open()
    assert await n_of(client) is None
    await leaders.close()


def test_a_reading_that_is_lost_costs_nothing() -> None:
    crowd = Crowd(3.0)
    crowd.observe(0, {"a": Totals(at=1.0, in_flight=4, area=10.0, completed=3)})
    seen, _ = crowd.observe(10, {"a": Totals(at=11.0, in_flight=5, area=55.0, completed=9)})
    assert (seen.in_flight, seen.mean_in_flight, seen.completed) == (5, 4.5, 6)


def test_a_process_that_says_nothing_more_is_gone_after_a_while() -> None:
    crowd = Crowd(3.0)
    silent = Totals(at=1.0, in_flight=4)
    for at in (0.0, 1.0, 3.0):
        seen, gone = crowd.observe(at, {"a": silent})
        assert (seen.in_flight, gone) == (4, [])
    seen, gone = crowd.observe(3.5, {"a": silent})
    assert (seen.in_flight, gone) == (0, ["a"])


def test_a_process_that_begins_anew_does_not_count_backwards() -> None:
    crowd = Crowd(3.0)
    crowd.observe(0, {"a": Totals(at=500.0, in_flight=4, area=100.0, completed=30)})
    seen, _ = crowd.observe(5, {"a": Totals(at=1.0, in_flight=2, area=1.0, completed=1)})
    assert (seen.in_flight, seen.completed) == (2, 1)


def test_what_others_counted_before_a_takeover_is_no_news() -> None:
    crowd = Crowd(3.0)
    seen, _ = crowd.observe(0, {"a": Totals(at=500.0, in_flight=4, completed=30, overloads=3)})
    assert (seen.in_flight, seen.completed, seen.overloads) == (4, 0, 0)
    seen, _ = crowd.observe(5, {"b": Totals(at=2.0, in_flight=1, completed=2)})
    assert (seen.in_flight, seen.completed) == (1, 2)


def test_tokens_in_streams_are_estimated_from_pieces() -> None:
    crowd = Crowd(3.0)
    first = Totals(at=1.0, streams=True, chunks=0, ended_chunks=100, tokens=200)
    crowd.observe(0, {"a": first})
    later = Totals(at=6.0, streams=True, chunks=50, ended_chunks=100, tokens=200, stalled=2)
    seen, _ = crowd.observe(5, {"a": later})
    assert seen.streams is not None
    assert (seen.streams.tokens, seen.streams.stalled) == (100, 2)
    assert seen.gauges is None


def test_a_reply_counts_with_its_duration() -> None:
    tally = Tally(False, lambda: 3.0)
    flight = tally.start("extract")
    flight.answered(Reply("x", "stop", Usage(completion=2), None, 1.0))
    flight.close()
    assert tally.read().completed == 1
