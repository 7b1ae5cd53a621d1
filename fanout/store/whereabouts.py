"""Where the open items of a job are: in the queue, or with a worker."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson
import redis.asyncio

from fanout.queue import queue_of, task_id

#: Messages in one look.
_PAGE = 500


async def missing(
    client: redis.asyncio.Redis, job: str, tier: str, ordinals: Collection[int]
) -> set[int]:
    """Those of the ordinals whose messages are neither in the tier's queue nor unacknowledged.

    Looked for in the direction in which messages travel, so that one on its way is seen. One that
    goes back into the queue meanwhile may count as missing: it is then run twice and settled once.
    """
    redis_: Any = client
    sought = {task_id(job, ordinal): ordinal for ordinal in ordinals}
    start = 0
    # From the side where messages come in: what is added meanwhile shifts the others towards us.
    while sought and (page := await redis_.lrange(queue_of(tier), start, start + _PAGE - 1)):
        for raw in page:
            sought.pop(_id_of(orjson.loads(raw)), None)
        start += _PAGE
    if sought:
        async for _, raw in redis_.hscan_iter("unacked", count=_PAGE):
            sought.pop(_id_of(orjson.loads(raw)[0]), None)
    return set(sought.values())


def _id_of(message: Any) -> str:
    return str(message.get("headers", {}).get("id", "")) if isinstance(message, dict) else ""
