"""The job stores that need no server; see tests/integration/test_store_real.py for the others."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fakeredis
import pytest
from fakeredis import FakeAsyncRedis

from fanout.errors import JobError, Unavailable
from fanout.store import RedisStore, Store
from fanout.testing import MemoryStore
from tests.store_contract import SPEC, StoreContract, items


class TestMemoryStore(StoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        store = MemoryStore()
        yield store
        await store.aclose()


class TestRedisStoreOnFakeRedis(StoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        store = RedisStore(FakeAsyncRedis(server=fakeredis.FakeServer()))
        yield store
        await store.aclose()


class TestRedisStoreThatLingers(StoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        client = FakeAsyncRedis(server=fakeredis.FakeServer())
        store = RedisStore(client, linger_s=0.001)
        yield store
        await store.aclose()


@pytest.mark.anyio
async def test_memory_store_hands_out_items_in_order() -> None:
    store = MemoryStore()
    await store.create("j", SPEC)
    await store.submit("j", SPEC, items("j", 0, 2))
    assert store.take("light") is None
    taken = [store.take("heavy") for _ in range(3)]
    assert [item and item.ordinal for item in taken] == [0, 1, None]


@pytest.mark.anyio
async def test_a_creation_that_is_sent_again_is_no_second_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = RedisStore(FakeAsyncRedis(server=fakeredis.FakeServer()))
    with monkeypatch.context() as frozen:
        # redis-py sends a command again, unchanged, when its reply is lost.
        frozen.setattr("fanout.store.redis.time.time", lambda: 1700000000.25)
        await store.create("j", SPEC)
        await store.create("j", SPEC)
    with pytest.raises(JobError, match="already a job j"):
        await store.create("j", SPEC)
    assert (await store.get("j")).created_at == 1700000000.25
    await store.aclose()


@pytest.mark.anyio
async def test_every_call_says_that_redis_is_away() -> None:
    server = fakeredis.FakeServer()
    server.connected = False
    store = RedisStore(FakeAsyncRedis(server=server), "redis://somewhere:6379/0")
    for call in (store.ping(), store.get("j"), store.create("j", SPEC), store.workers()):
        with pytest.raises(Unavailable, match="redis://somewhere:6379/0 does not answer"):
            await call
    await store.aclose()
