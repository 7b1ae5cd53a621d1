"""Finding what is missing, on real servers, while messages move."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator

import orjson
import pytest
import redis.asyncio
from kombu.transport.redis import Channel

from fanout import keys
from fanout.queue import message_of, queue_of, task_id
from fanout.store import RedisStore
from fanout.store.redis import connect_redis
from fanout.store.whereabouts import UNACKED, missing, queue_lists
from fanout_workers.transport.scripts import FETCH, RESTORE
from tests.integration.servers import binaries, running_server
from tests.store_contract import SPEC, items, record

pytestmark = pytest.mark.anyio

TIER = SPEC.tier
INDEX = "unacked_index"


@pytest.fixture(scope="module", params=sorted(binaries()))
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with running_server(request.param) as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = connect_redis(url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def store(url: str, client: redis.asyncio.Redis) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(url)
    await store.create("j", SPEC)
    yield store
    await store.aclose()


async def take(client: redis.asyncio.Redis, count: int) -> list[str]:
    """Do what a worker does to take messages; their delivery tags."""
    fetch = client.register_script(FETCH)
    keys = [UNACKED, INDEX, "dead", *queue_lists(TIER)]
    found = await fetch(keys=keys, args=[count, "0", "1", 2**26, 0])
    return [orjson.loads(raw)["properties"]["delivery_tag"] for raw in found[1::2]]


async def put_back(client: redis.asyncio.Redis, tag: str, place: str) -> None:
    """Do what a worker does to return a message."""
    (entry,) = await client.hmget(UNACKED, [tag])
    if entry is not None:
        message = orjson.dumps(orjson.loads(entry)[0])
        await client.register_script(RESTORE)(
            keys=[UNACKED, INDEX, queue_of(TIER)], args=[tag, place, "+inf", message]
        )


async def ack(client: redis.asyncio.Redis, tag: str) -> None:
    await client.hdel(UNACKED, tag)
    await client.zrem(INDEX, tag)


def test_kombu_s_names() -> None:
    steps = tuple(int(name.partition(Channel.sep)[2] or 0) for name in queue_lists(TIER))
    assert steps == tuple(Channel.priority_steps)
    assert {name.partition(Channel.sep)[0] for name in queue_lists(TIER)} == {queue_of(TIER)}
    assert Channel.unacked_key == UNACKED


async def test_each_place_is_looked_into(client: redis.asyncio.Redis, store: RedisStore) -> None:
    await store.submit("j", SPEC, items("j", 0, 6))
    first, second = await take(client, 2)  # 0 and 1
    await store.settle("j", 1, record(1))
    await ack(client, second)
    lost = await client.rpop(queue_of(TIER))  # 2
    assert orjson.loads(lost)["headers"]["id"] == task_id("j", 2)
    urgent = await client.rpop(queue_of(TIER))  # 3
    await client.lpush(queue_lists(TIER)[-1], urgent)
    assert await missing(client, "j", TIER, range(6)) == {2}
    assert await missing(client, "j", TIER, [0, 1, 3, 4, 5]) == set()
    assert await missing(client, "j", TIER, []) == set()
    assert await missing(client, "other", TIER, [0, 1]) == {0, 1}
    await ack(client, first)  # acknowledged, and never settled
    assert await missing(client, "j", TIER, range(6)) == {0, 2}


async def test_what_kombu_and_celery_write(client: redis.asyncio.Redis, store: RedisStore) -> None:
    # With spaces, as the standard library writes JSON; and an id of a document that looks like one.
    (item,) = items("j", 7, 1)
    odd = item.model_copy(update={"id": f'"correlation_id": "{task_id("j", 8)}"'})
    message = orjson.loads(message_of(odd, SPEC.kind, TIER))
    await client.lpush(queue_of(TIER), b"no JSON", b"", b"\xff")
    await client.lpush(queue_of(TIER), json.dumps(message))
    assert await missing(client, "j", TIER, [7, 8]) == {8}


async def test_nothing_is_there(client: redis.asyncio.Redis) -> None:
    assert await missing(client, "j", TIER, range(1200)) == set(range(1200))


async def test_a_long_queue_is_read_in_short_calls(
    client: redis.asyncio.Redis, store: RedisStore
) -> None:
    for first in range(0, 6000, 500):
        await store.submit("j", SPEC, items("j", first, 500))
    await take(client, 700)
    await client.lrem(queue_of(TIER), 1, (await client.lindex(queue_of(TIER), 2500)).decode())
    await client.config_set("slowlog-log-slower-than", 0)
    await client.config_set("slowlog-max-len", 10_000)
    await client.slowlog_reset()
    assert len(await missing(client, "j", TIER, range(6000))) == 1
    scripts = [one for one in await client.slowlog_get(10_000) if b"EVALSHA" in one["command"]]
    pages = [one for one in scripts if queue_of(TIER).encode() in one["command"].split()]
    assert 2 * 6 <= len(pages) <= 40
    assert not any(b" 0 -1" in one["command"] for one in scripts)


async def test_messages_that_move_are_not_missing(
    client: redis.asyncio.Redis, store: RedisStore
) -> None:
    """A worker takes, returns, settles and acknowledges all the time; a producer goes on too."""
    count = 1500
    for first in range(0, count, 500):
        await store.submit("j", SPEC, items("j", first, 500))
    lost = {int(task) for task in random.Random(7).sample(range(count), 3)}
    for raw in await client.lrange(queue_of(TIER), 0, -1):
        if orjson.loads(raw)["headers"]["id"] in {task_id("j", one) for one in lost}:
            await client.lrem(queue_of(TIER), 1, raw)
    done = asyncio.Event()
    moves = 0

    async def worker() -> None:
        nonlocal moves
        rng = random.Random(7)
        ordinals = {task_id("j", ordinal): ordinal for ordinal in range(count)}
        other = 0
        while not done.is_set():
            other += 1
            await store.submit("k", SPEC, items("k", other, 1))
            tags = await take(client, 40)
            entries = await client.hmget(UNACKED, tags) if tags else []
            for tag, entry in zip(tags, entries, strict=True):
                moves += 1
                ordinal = ordinals.get(orjson.loads(entry)[0]["headers"]["id"])
                if ordinal is not None and rng.random() < 0.2:
                    await store.settle("j", ordinal, record(ordinal))
                    await ack(client, tag)
                else:
                    await put_back(client, tag, rng.choice(["LPUSH", "RPUSH"]))

    await store.create("k", SPEC)
    moving = asyncio.create_task(worker())
    looks = 0
    async with asyncio.timeout(60):
        while moves < 300:
            assert await missing(client, "j", TIER, range(count)) == lost
            looks += 1
    done.set()
    await moving
    assert looks > 1
    assert await client.exists(keys.settled("j"))
