"""The contract of the job store over real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from fanout import keys
from fanout.errors import Unavailable
from fanout.store import RedisStore, Store
from fanout.store.redis import connect_redis
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
