"""fanout's messages and Celery's own are of one form, on a real server and both ways."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import redis
from celery import Celery
from kombu.entity import Queue

from fanout.queue import kwargs_of, message_of, queue_of, task_id, task_name
from fanout.store import RedisStore
from fanout.wire import Item, JobSpec
from tests.integration.servers import binaries, running_server

TIER, QUEUE = "heavy", queue_of("heavy")
ITEM = Item(id="a", payload={"text": "é"}, ordinal=3, job="j", submitted_at=1700000000.5)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(next(iter(binaries()))) as url:
        yield url


@pytest.fixture(autouse=True)
def client(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        client.flushall()  # a server of this module's own
        yield client


@pytest.fixture
def app(url: str) -> Iterator[Celery]:
    with Celery("plain", broker=url, set_as_current=False) as app:
        app.conf.task_default_queue = QUEUE
        app.conf.task_queues = [Queue(QUEUE, routing_key=QUEUE)]  # type: ignore[no-untyped-call]
        yield app


def shape(value: Any) -> Any:
    """The keys at every level, with the types of what they hold."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return type(value).__name__


def send(app: Celery, **options: Any) -> None:
    # Celery's own id would be random; everything else is left to Celery.
    app.send_task(
        task_name("extract"),
        kwargs=kwargs_of(ITEM),
        task_id=task_id("j", 3),
        queue=QUEUE,
        ignore_result=True,
        **options,
    )


def test_a_message_has_the_keys_and_types_of_celery_s_own(app: Celery, client: redis.Redis) -> None:
    send(app)
    (raw,) = client.lrange(QUEUE, 0, -1)
    theirs = orjson.loads(raw)
    ours = orjson.loads(message_of(ITEM, "extract", TIER))
    assert shape(ours) == shape(theirs)
    assert set(ours["headers"]) == set(theirs["headers"])
    assert body_of(ours) == body_of(theirs)


def body_of(message: dict[str, Any]) -> Any:
    return orjson.loads(base64.b64decode(message["body"]))


def test_the_values_that_are_not_ours_to_choose_are_celery_s(
    app: Celery, client: redis.Redis
) -> None:
    send(app)
    theirs = orjson.loads(client.lrange(QUEUE, 0, -1)[0])
    ours = orjson.loads(message_of(ITEM, "extract", TIER))
    for message in (ours, theirs):
        for section, own in {
            "headers": ("argsrepr", "kwargsrepr", "origin"),
            "properties": ("delivery_tag", "reply_to"),
        }.items():
            for key in own:
                del message[section][key]
        del message["body"]
    assert ours == theirs


@pytest.mark.anyio
async def test_celery_receives_what_fanout_submits(app: Celery, url: str) -> None:
    store = RedisStore.from_url(url)
    spec = JobSpec(kind="extract", tier=TIER)
    await store.create("j", spec)
    await store.submit("j", spec, [ITEM, ITEM.model_copy(update={"id": "b", "ordinal": 4})])
    await store.aclose()
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(QUEUE)
        received = [queue.get(timeout=10) for _ in range(2)]
        for message in received:
            message.ack()
        queue.close()
    assert [message.payload[1]["id"] for message in received] == ["a", "b"]
    first = received[0]
    assert first.payload[1] == kwargs_of(ITEM)
    assert first.headers["task"] == "fanout.extract"
    assert first.headers["id"] == first.properties["correlation_id"] == task_id("j", 3)


@pytest.mark.anyio
async def test_a_message_that_is_not_acknowledged_goes_back_to_its_queue(
    app: Celery, url: str, client: redis.Redis
) -> None:
    store = RedisStore.from_url(url)
    spec = JobSpec(kind="extract", tier=TIER)
    await store.create("j", spec)
    await store.submit("j", spec, [ITEM])
    before = orjson.loads(client.lrange(QUEUE, 0, -1)[0])
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(QUEUE)
        message = queue.get(timeout=10)
        assert await store.queued(TIER) == 0
        message.requeue()
        queue.close()
    assert await store.queued(TIER) == 1
    after = orjson.loads(client.lrange(QUEUE, 0, -1)[0])
    assert after["body"] == before["body"]
    assert after["headers"].pop("redelivered", True)
    assert after["properties"]["delivery_info"]["routing_key"] == QUEUE
    await store.aclose()
