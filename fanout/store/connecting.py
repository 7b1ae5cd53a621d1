"""redis-py's asyncio clients, with what they leave open closed."""

from __future__ import annotations

from typing import Any

import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError


class _Mended:
    """A connection on which every failure to write is a lost connection.

    uvloop answers a write to a connection that has just been lost with a RuntimeError, where
    asyncio's own loop has a ConnectionResetError. redis-py lets it pass: it would neither try again
    nor say that Redis is away.
    """

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except RuntimeError as error:
            if "closed" not in str(error):
                raise
            raise RedisConnectionError(f"the connection is closed: {error}") from error


def client_of(url: str, **options: Any) -> redis.asyncio.Redis:
    """`redis.asyncio.Redis.from_url`, its connections mended."""
    client = redis.asyncio.Redis.from_url(url, **options)
    pool: Any = client.connection_pool
    kind = pool.connection_class
    pool.connection_class = type(f"Mended{kind.__name__}", (_Mended, kind), {})
    return client
