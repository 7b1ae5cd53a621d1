"""Waiting for a store that is away."""

from __future__ import annotations

import asyncio
import inspect

import fakeredis
import pytest
from fakeredis import FakeAsyncRedis
from redis import exceptions

from fanout import Endpoint, Fanout, Settings
from fanout.client import connection
from fanout.errors import Unavailable
from fanout.store import RedisStore, Store, patience
from fanout.store.patience import Patience, passes, patient
from tests.store_contract import SPEC, items
from tests.unit.test_client import Echo

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSE_S", 0.0)
    monkeypatch.setattr(patience, "_TELL_S", 0.0)


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


@pytest.fixture
def store(server: fakeredis.FakeServer) -> RedisStore:
    return RedisStore(FakeAsyncRedis(server=server), "redis://here")


def waiting(limit_s: float = 60.0) -> tuple[Patience, list[str]]:
    told: list[str] = []
    made = Patience("redis://here", limit_s)
    made.tell = told.append
    return made, told


async def test_a_call_waits_until_redis_is_back(
    server: fakeredis.FakeServer, store: RedisStore
) -> None:
    patience, told = waiting()
    patiently = patient(store, patience)
    await patiently.create("j", SPEC)
    server.connected = False
    feeding = asyncio.create_task(patiently.submit("j", SPEC, items("j", 0, 3)))
    async with asyncio.timeout(30):
        while not told:
            await asyncio.sleep(0)
    assert not feeding.done()
    assert patience.away_since is not None
    assert patience.words().startswith("waiting for Redis since ")
    assert "redis://here does not answer" in told[0]
    server.connected = True
    async with asyncio.timeout(30):
        await feeding
    assert (await store.get("j")).counts.submitted == 3
    assert (patience.away_since, patience.words(), patience.away_s) == (None, "", 0.0)
    assert told[1:] == ["Redis answers again, after 0:00"]


async def test_a_quick_restart_needs_no_words(
    server: fakeredis.FakeServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_TELL_S", 3600.0)
    made, told = waiting()
    server.connected = False
    reading = asyncio.create_task(patient(store, made).state("j"))
    async with asyncio.timeout(30):
        while made.away_since is None:
            await asyncio.sleep(0)
    server.connected = True
    assert await reading is None
    assert told == []


async def test_it_gives_up_in_the_end(server: fakeredis.FakeServer, store: RedisStore) -> None:
    made, _ = waiting(limit_s=0.0)
    server.connected = False
    with pytest.raises(Unavailable, match=r"given up after 0:00 of waiting: Redis at redis://here"):
        await patient(store, made).unread("j")


@pytest.mark.parametrize("name", ["ping", "create", "workers", "jobs", "queued"])
async def test_what_a_command_asks_first_does_not_wait(
    server: fakeredis.FakeServer, store: RedisStore, name: str
) -> None:
    made, told = waiting()
    server.connected = False
    arguments = {"create": ("j", SPEC), "queued": ("heavy",)}.get(name, ())
    with pytest.raises(Unavailable):
        await getattr(patient(store, made), name)(*arguments)
    assert told == []


def test_the_calls_that_wait_are_a_store_s() -> None:
    for name in patience._WAITING:
        assert inspect.iscoroutinefunction(getattr(Store, name)), name


async def test_a_call_without_an_answer_is_noticed_before_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "_SILENT_S", 0.0)
    made, told = waiting()
    answer = asyncio.Event()
    call = asyncio.create_task(made.wait(answer.wait))
    async with asyncio.timeout(30):
        while not told:
            await asyncio.sleep(0)
    assert "Redis at redis://here does not answer" in told[0]
    answer.set()
    assert await call
    assert made.away_since is None


@pytest.mark.parametrize(
    ("cause", "may_pass"),
    [
        (exceptions.ConnectionError("refused"), True),
        (exceptions.TimeoutError(), True),
        (ConnectionResetError(), True),
        (exceptions.BusyLoadingError("loading"), True),
        (exceptions.OutOfMemoryError("command not allowed"), True),
        (exceptions.ReadOnlyError("a replica"), True),
        (exceptions.MasterDownError("link down"), True),
        (exceptions.ResponseError("MISCONF cannot write its snapshot"), True),
        (exceptions.ResponseError("WRONGTYPE Operation against a key"), False),
        (exceptions.ResponseError("unknown command"), False),
        (exceptions.AuthenticationError("WRONGPASS"), False),
        (exceptions.NoPermissionError("NOPERM"), False),
        (None, False),
    ],
)
async def test_what_passes_by_itself(cause: BaseException | None, may_pass: bool) -> None:
    error = Unavailable("no")
    error.__cause__ = cause
    assert passes(error) is may_pass

    async def refused() -> None:
        raise error

    made, told = waiting(limit_s=0.0)
    with pytest.raises(Unavailable) as caught:
        await made.wait(refused)
    assert (caught.value is error) is not may_pass
    assert bool(told) is may_pass


async def test_who_leaves_does_not_wait_for_redis(
    server: fakeredis.FakeServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_TOLD_S", 0.05)
    settings = Settings(endpoint={"s": Endpoint(url="http://s", tier="heavy")})
    made, _ = waiting()
    fo = Fanout(settings, patient(store, made), store, made)
    job = await fo.submit(Echo, map(str, range(5000)), window=10)
    server.connected = False
    async with asyncio.timeout(30):
        await fo.abandon()
    assert not job.feeding
    assert made.away_since is not None
