"""A connection to Redis that is lost between two commands, on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from servers import binaries, running_server

from fanout.store import RedisStore
from fanout.store.connecting import client_of

Loop = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(next(iter(binaries()))) as found:
        yield found


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_write_to_a_lost_connection_is_a_connection_error(url: str, run: Loop) -> None:
    async def lose() -> None:
        client = client_of(url)
        pool: Any = client.connection_pool
        try:
            await client.ping()
            (connection,) = pool._available_connections
            connection._writer.transport.abort()
            with pytest.raises(RedisConnectionError):
                await connection.send_command("PING")
            assert await client.ping()
        finally:
            await client.aclose()

    run(lose())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_the_store_goes_on_over_a_new_connection(url: str, run: Loop) -> None:
    async def lose() -> None:
        store = RedisStore.from_url(url)
        pool: Any = store._redis.connection_pool
        try:
            assert await store.state("nobody") is None
            (connection,) = pool._available_connections
            connection._writer.transport.abort()
            assert await store.state("nobody") is None
        finally:
            await store.aclose()

    run(lose())
