"""What is looked at to see whether Redis has lost something of a job."""

from __future__ import annotations

from typing import Any, cast

import redis.asyncio
from redis.exceptions import ResponseError

from fanout import keys
from fanout.store.base import JobState, Pulse
from fanout.wire import STATUSES

_FIELDS = ("state", "next", "submitted", *STATUSES)


class Checkup:
    """The calls of the store on Redis by which a loss is noticed.

    Args:
        client: as `RedisStore` has it.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis: Any = client
        self._tells_run = True

    async def eviction(self) -> str:
        """As `Store.eviction`."""
        try:
            info = await self._redis.info("memory")
        except ResponseError:  # a user without the right to ask, or a managed server
            return ""
        policy = str(info.get("maxmemory_policy", ""))
        return policy if policy.startswith("allkeys-") and info.get("maxmemory") else ""

    async def pulse(self, job: str) -> Pulse:
        """As `Store.pulse`; one round trip."""
        async with self._redis.pipeline(transaction=False) as both:
            both.hmget(keys.job(job), *_FIELDS)
            if self._tells_run:
                both.info("server")
            fields, *server = await both.execute(raise_on_error=False)
        if server and isinstance(server[0], ResponseError):
            self._tells_run = False  # a managed server that gives no such figures
        elif server and isinstance(server[0], Exception):
            raise server[0]
        if isinstance(fields, Exception):
            raise fields
        run = server[0].get("run_id") if server and isinstance(server[0], dict) else None
        state, *figures = fields
        count, submitted, *ended = (int(figure or 0) for figure in figures)
        known = cast(JobState, state.decode()) if state else None
        return Pulse(run, known, count, submitted, sum(ended))
