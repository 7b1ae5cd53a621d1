"""A worker that works nothing: `python standin.py REDIS ITEMS [RATE]`.

It takes messages off the queue by the batch and settles each with a record of the usual size,
through fanout's own store. What is left is what the client and Redis can carry. With a rate, items
per second, it settles as a worker does at that rate: every 25 ms what has come together.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import time

import orjson
import uvloop

from fanout.queue import queue_of
from fanout.store import RedisStore, WorkerInfo
from fanout.store.redis import connect_redis
from fanout.wire import Evidence, Item, Record, Timing, Usage

TIER = "default"
_TAKE = 256
_EVERY_S = 2.0
_LINGER_S = 0.025
_DATA = {
    "title": "Engineer for large machines",
    "company": "Weld and Sons",
    "remote": True,
    "salary": 71234,
    "skills": ["pipelines", "ledgers", "small promises", "large machines"],
}


def record_of(item: Item) -> Record:
    """A record as `extract` makes it, with made-up figures."""
    return Record(
        id=item.id,
        status="ok",
        data=_DATA,
        attempts=1,
        tier=TIER,
        endpoint="bench",
        model="openai/gpt-oss-120b",
        finish_reason="stop",
        usage=Usage(prompt=620, completion=40),
        timing=Timing(
            queued_s=0.4123, permit_s=0.0001, ttft_s=0.0121, total_s=0.0213, tokens_per_s=1885.2,
            finished_at=time.time(),
        ),
        evidence=(Evidence(path="company", start=10, end=23),),
        input_sha256="5f" * 32,
        schema_sha256="c3" * 32,
    )  # fmt: skip


def item_of(message: bytes) -> Item:
    """The item of a Celery message."""
    body = orjson.loads(base64.b64decode(orjson.loads(message)["body"]))
    return Item.model_validate(body[1])


async def main(url: str, items: int, rate: float = 0.0) -> None:
    client = connect_redis(url)
    store = RedisStore(client)
    me = WorkerInfo("stand-in", TIER, capacity={"bench": _TAKE}, kinds=("extract",))
    done, told, began = 0, 0.0, time.monotonic()
    while done < items:
        due = round((time.monotonic() - began) * rate) - done if rate else _TAKE
        if time.monotonic() - told > _EVERY_S:
            await store.report_worker(me, 5 * _EVERY_S)
            told = time.monotonic()
        messages = await client.rpop(queue_of(TIER), min(due, _TAKE)) if due > 0 else None
        if rate:
            await asyncio.sleep(_LINGER_S)
        if not messages:
            if not done:
                began = time.monotonic()
            await asyncio.sleep(0.002)
            continue
        found = [item_of(message) for message in messages]
        await asyncio.gather(
            *(store.settle(i.job or "", i.ordinal or 0, record_of(i)) for i in found)
        )
        done += len(found)
    await store.aclose()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), *map(float, sys.argv[3:])))
