"""Ending the items of a job that no worker has taken, many at a time.

A worker ends such an item too, but as one Celery message after another. An item is settled first
and its message removed after that: whoever dies in between leaves a message whose item has ended,
and a worker drops that.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from pydantic import ValidationError

from fanout.wire import Item

#: Messages looked at in one call.
_PAGE = 500

#: Ends an item of the job; what it returns does not matter here.
End = Callable[[Item], Awaitable[object]]


async def end_queued(client: Any, queue: str, job: str, end: End) -> int:
    """End every item of the job whose message waits in the queue; returns how many there were.

    Args:
        client: a redis-py asyncio client that returns bytes.
        queue: key of a list that is consumed at its right end.
        job: the job's id.
        end: settles one item.
    """
    ended = kept = 0
    while True:
        # From the right, where the oldest are. What workers take meanwhile moves the rest along,
        # so a message may be missed: then it is a worker's, as everything else is.
        page = await client.lrange(queue, -(kept + _PAGE), -(kept + 1))
        if not page:
            return ended
        found = [(raw, item) for raw in page if (item := item_in(raw)) and item.job == job]
        await asyncio.gather(*(end(item) for _, item in found))
        if found:
            async with client.pipeline(transaction=False) as removing:
                for raw, _ in reversed(found):
                    removing.lrem(queue, -1, raw)
                await removing.execute()
        ended += len(found)
        kept += len(page) - len(found)


def item_in(message: bytes) -> Item | None:
    """The item in a queue's message; None for a message that is none of ours."""
    try:
        envelope = orjson.loads(message)
        body = orjson.loads(base64.b64decode(envelope["body"]))
        return Item.model_validate(body[1])
    except (ValueError, LookupError, TypeError, ValidationError):
        return None
