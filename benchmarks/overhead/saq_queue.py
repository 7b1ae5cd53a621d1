"""saq on uvloop, as its documentation sets it up.

python saq_queue.py worker REDIS URL N
python saq_queue.py enqueue REDIS COUNT      prints the seconds it took
python saq_queue.py results REDIS            prints how many jobs have their result
"""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import islice
from typing import Any

import aiohttp
import orjson
import redis.asyncio
import uvloop
from saq import Worker
from saq.queue.redis import RedisQueue
from workload import body_of, documents


def queue_at(url: str) -> Any:
    return RedisQueue(redis.asyncio.Redis.from_url(url, max_connections=2048), name="bench")


async def ask(ctx: dict[str, Any], *, text: str) -> Any:
    async with ctx["session"].post(
        ctx["url"],
        data=orjson.dumps(body_of(text)),
        headers={"content-type": "application/json"},
    ) as reply:
        body = orjson.loads(await reply.read())
    return orjson.loads(body["choices"][0]["message"]["content"])


async def work(redis_url: str, url: str, concurrency: int) -> None:
    async def startup(ctx: dict[str, Any]) -> None:
        ctx["url"] = f"{url}/chat/completions"
        ctx["session"] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def shutdown(ctx: dict[str, Any]) -> None:
        await ctx["session"].close()

    await Worker(
        queue_at(redis_url),
        [("ask", ask)],
        concurrency=concurrency,
        startup=startup,
        shutdown=shutdown,
    ).start()


async def enqueue(redis_url: str, count: int) -> None:
    queue = queue_at(redis_url)
    await queue.connect()
    texts = documents(count)
    began = time.monotonic()
    while chunk := list(islice(texts, 500)):
        await asyncio.gather(*(queue.enqueue("ask", text=text, timeout=600) for text in chunk))
    print(time.monotonic() - began)
    await queue.disconnect()


async def results(redis_url: str) -> None:
    client = redis.asyncio.Redis.from_url(redis_url)
    keys = [key async for key in client.scan_iter("saq:job:bench:*", count=5000)]
    done = 0
    for first in range(0, len(keys), 1000):
        for raw in await client.mget(keys[first : first + 1000]):
            done += raw is not None and orjson.loads(raw)["status"] == "complete"
    print(done)
    await client.aclose()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", redis_url, url, concurrency]:
            uvloop.run(work(redis_url, url, int(concurrency)))
        case ["enqueue", redis_url, count]:
            uvloop.run(enqueue(redis_url, int(count)))
        case ["results", redis_url]:
            uvloop.run(results(redis_url))
