"""Redis forgets, dies or is flushed in mid-run: every document has one record all the same."""

from __future__ import annotations

import asyncio
import base64
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
import pytest
import redis.asyncio
from pydantic import BaseModel
from redis.exceptions import RedisError

import fanout
from fanout import ChatRequest, Endpoint, Record, Reply, Settings, Task, Unavailable
from fanout.client import reconciler
from fanout.queue import queue_of
from fanout.store import RedisStore
from fanout.store.whereabouts import UNACKED, queue_lists
from fanout_workers.transport.scripts import EXPIRED, FETCH, RESTORE
from tests.integration.servers import Restartable, binaries, restartable_server

pytestmark = pytest.mark.anyio

TIER = "heavy"
INDEX = "unacked_index"
COUNT = 1500


class Echo(Task):
    name = "echo"

    class Params(BaseModel):
        pass

    def requests(self, payload: Any) -> Sequence[ChatRequest]:
        return []

    def validate(self, reply: Reply, payload: Any) -> Any:
        return None


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "_LOOK_S", 0.2)
    monkeypatch.setattr(reconciler, "_REST_S", 0.5)
    monkeypatch.setattr(reconciler, "_QUIET_S", 2.0)


class Worker:
    """Does with Redis what a worker does, 64 items at a time."""

    def __init__(self, url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(url)
        self._store = RedisStore.from_url(url, retries=0)
        self._rng = random.Random(7)
        self.runs: Counter[str] = Counter()

    async def work(self) -> None:
        while True:
            with suppress(RedisError, Unavailable, OSError):
                await self._restore_old()
                await self._batch()
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self._redis.aclose()
        await self._store.aclose()

    async def _batch(self) -> None:
        fetch = self._redis.register_script(FETCH)
        keys = [UNACKED, INDEX, "dead", *queue_lists(TIER)]
        found = await fetch(keys=keys, args=[64, "0", "1", 2**26, 0])
        await asyncio.gather(*(self._item(orjson.loads(raw)) for raw in found[1::2]))

    async def _item(self, message: dict[str, Any]) -> None:
        _, fields, _ = orjson.loads(base64.b64decode(message["body"]))
        self.runs[fields["id"]] += 1
        await asyncio.sleep(self._rng.random() * 0.04)
        status = "invalid" if fields["ordinal"] % 10 == 3 else "ok"
        record = Record(id=fields["id"], status=status, ordinal=fields["ordinal"])
        while True:  # as a worker does, it keeps what it has until Redis is back
            try:
                await self._store.settle(fields["job"], fields["ordinal"], record)
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        tag = message["properties"]["delivery_tag"]
        await self._redis.hdel(UNACKED, tag)
        await self._redis.zrem(INDEX, tag)

    async def _restore_old(self) -> None:
        expired = self._redis.register_script(EXPIRED)
        deadline, *pairs = await expired(keys=[UNACKED, INDEX], args=[2.0, 100])
        for tag, entry in zip(pairs[::2], pairs[1::2], strict=True):
            message = orjson.dumps(orjson.loads(entry)[0])
            await self._redis.register_script(RESTORE)(
                keys=[UNACKED, INDEX, queue_of(TIER)], args=[tag, "RPUSH", deadline, message]
            )


@asynccontextmanager
async def working(url: str) -> AsyncIterator[Worker]:
    worker = Worker(url)
    task = asyncio.create_task(worker.work())
    try:
        yield worker
    finally:
        await fanout.aio.ended(task)
        await worker.close()


def settings_for(url: str) -> Settings:
    return Settings(redis=url, endpoint={"s": Endpoint(url="http://s", tier=TIER)})


async def flush(server: Restartable) -> None:
    async with redis.asyncio.Redis.from_url(server.url) as client:
        await client.flushall()


async def kill(server: Restartable) -> None:
    server.kill()
    await asyncio.sleep(0)
    await asyncio.to_thread(server.start)


async def restart_empty(server: Restartable) -> None:
    server.kill()
    server.forget()
    await asyncio.to_thread(server.start)


async def lose_messages(server: Restartable) -> None:
    """What a message is that its worker took and never noted."""
    async with redis.asyncio.Redis.from_url(server.url) as client:
        await client.delete(queue_of(TIER))


@pytest.mark.parametrize("kind", sorted(binaries()))
@pytest.mark.parametrize("harm", [flush, kill, restart_empty, lose_messages])
async def test_every_document_has_one_record(kind: str, harm: Callable[[Restartable], Any]) -> None:
    told: list[str] = []
    ids: list[str] = []
    with restartable_server(kind) as server:
        async with (
            asyncio.timeout(50),
            working(server.url) as worker,
            fanout.connect(settings=settings_for(server.url)) as fo,
        ):
            fo.tell = told.append
            job = await fo.submit(Echo, map(str, range(COUNT)), window=300)
            harmed = False
            async for batch in job.batches(limit=100):
                ids += [record.id for record in batch]
                if len(ids) >= COUNT // 3 and not harmed:
                    harmed = True
                    await harm(server)
            counts = (await job.info()).counts
    assert sorted(ids, key=int) == [str(n) for n in range(COUNT)]
    assert (counts.submitted, counts.settled, counts.open) == (COUNT, COUNT, 0)
    assert (counts.ok, counts.invalid) == (COUNT * 9 // 10, COUNT // 10)
    assert told
    assert sum(worker.runs.values()) < 1.5 * COUNT  # what was not lost is not run again
    assert not job.outstanding
