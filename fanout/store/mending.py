"""What a client looks at to see whether Redis still knows its job, and how it mends a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from uuid import uuid4

import redis.asyncio
from redis.exceptions import ResponseError

from fanout import keys
from fanout.queue import message_of, queue_of
from fanout.store.base import JobState, Pulse
from fanout.wire import STATUSES, Item, JobSpec

# KEYS job, queue, settled; ARGV token of the call, then for each item: ordinal, message
# To the end from which workers take: these have waited their turn.
_REQUEUE = """
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HGET', KEYS[1], 'requeued') == ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'requeued', ARGV[1])
local queued = 0
for i = #ARGV - 1, 2, -2 do
  if redis.call('GETBIT', KEYS[3], ARGV[i]) == 0 then
    redis.call('RPUSH', KEYS[2], ARGV[i + 1])
    queued = queued + 1
  end
end
return queued
"""

#: Items in one call.
_MOST = 500
_FIELDS = ("state", "next", "submitted", *STATUSES)


class Mending:
    """The calls of the store on Redis by which a client mends its job.

    Args:
        client: as `RedisStore` has it.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis: Any = client
        self._requeue = client.register_script(_REQUEUE)
        self._tells_run = True

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

    async def requeue(self, job: str, spec: JobSpec, items: Sequence[Item]) -> int:
        """As `Store.requeue`."""
        queued = 0
        for first in range(0, len(items), _MOST):
            args: list[Any] = [uuid4().hex]
            for item in items[first : first + _MOST]:
                message = message_of(
                    item, spec.kind, spec.tier, results=spec.results, resubmitted=True
                )
                args += (item.ordinal, message)
            queued += await self._requeue(
                keys=[keys.job(job), queue_of(spec.tier), keys.settled(job)], args=args
            )
        return queued

    async def has_ended(self, job: str, ordinal: int) -> bool:
        """As `Store.has_ended`."""
        return bool(await self._redis.getbit(keys.settled(job), ordinal))
