"""The contract of the job store over real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from fanout import keys
from fanout.errors import Unavailable
from fanout.store import RedisStore, Store, WorkerInfo
from fanout.store.redis import connect_redis
from fanout.wire import Record
from tests.integration.servers import binaries, restartable_server, running_server
from tests.store_contract import SPEC, StoreContract, items, record


@pytest.fixture(scope="module", params=sorted(binaries()))
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with running_server(request.param) as url:
        yield url


class TestRealRedisStore(StoreContract):
    @pytest.fixture
    async def store(self, url: str) -> AsyncIterator[Store]:
        client = connect_redis(url)
        await client.flushall()  # a server of this module's own, never a developer's
        await client.aclose()
        store = RedisStore.from_url(url)
        yield store
        await store.aclose()

    async def test_a_read_ends_before_its_connection_counts_as_dead(self, store: Store) -> None:
        await store.create("j", SPEC)
        assert not (await store.read("j", "0-0", 1, 60.0)).records

    async def test_a_million_ordinals_cost_125_kilobytes(self, url: str, store: Store) -> None:
        await store.create("j", SPEC)
        await store.reject("j", 999_999, record(999_999, "skipped"))
        client = connect_redis(url)
        assert await client.strlen(keys.settled("j")) == 125_000
        await client.aclose()

    async def test_workers_are_found_without_a_search(self, url: str, store: Store) -> None:
        # With results on there is a key for each item, and a client looks four times a second.
        client = connect_redis(url)
        await store.report_worker(WorkerInfo("w", "heavy"), 60)
        await client.config_resetstat()
        assert [worker.name for worker in await store.workers()] == ["w"]
        used = await client.info("commandstats")
        assert not {"cmdstat_scan", "cmdstat_keys"} & used.keys()
        await client.aclose()

    async def test_one_read_holds_some_megabytes_at_most(self, store: Store) -> None:
        await store.create("j", SPEC)
        for ordinal in range(200):
            await store.reject("j", ordinal, large(ordinal))
        batch = await store.read("j", "0-0", 500, 0)
        assert 40 <= len(batch.records) < 150
        rest = await store.read("j", batch.last, 500, 0)
        ids = [record.id for record in (*batch.records, *rest.records)]
        assert ids == [f"doc-{n}" for n in range(len(ids))]


def large(ordinal: int) -> Record:
    return record(ordinal).model_copy(update={"data": "x" * 100_000})


@pytest.mark.anyio
@pytest.mark.parametrize("kind", sorted(binaries()))
async def test_the_pulse_tells_of_a_restart(kind: str) -> None:
    with restartable_server(kind) as server:
        store = RedisStore.from_url(server.url)
        first = (await store.pulse("j")).run
        assert first
        assert (await store.pulse("j")).run == first
        server.stop()
        server.start()
        assert (await store.pulse("j")).run not in (first, None)
        await store.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", sorted(binaries()))
async def test_a_full_server_refuses_in_words(kind: str) -> None:
    with running_server(kind, "--maxmemory", "1mb", "--maxmemory-policy", "noeviction") as url:
        store = RedisStore.from_url(url, "redis://here")
        with pytest.raises(Unavailable, match=r"redis://here refuses: .*maxmemory"):
            await fill(store)
        await store.aclose()


async def fill(store: Store) -> None:
    await store.create("j", SPEC)
    for first in range(0, 100_000, 1000):
        await store.submit("j", SPEC, items("j", first, 1000))
