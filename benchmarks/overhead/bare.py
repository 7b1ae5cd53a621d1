"""A bare asyncio client: aiohttp on uvloop, no queue, no record: `python bare.py URL N ITEMS`."""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import orjson
import uvloop
from workload import body_of, documents


async def main(url: str, concurrency: int, count: int) -> None:
    waiting = documents(count)

    async def work(session: aiohttp.ClientSession) -> None:
        for text in waiting:
            async with session.post(
                f"{url}/chat/completions",
                data=orjson.dumps(body_of(text)),
                headers={"content-type": "application/json"},
            ) as reply:
                body = orjson.loads(await reply.read())
            orjson.loads(body["choices"][0]["message"]["content"])

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(work(session) for _ in range(concurrency)))
    print("done", flush=True)
    await asyncio.sleep(60)  # to be looked at, until it is stopped


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
