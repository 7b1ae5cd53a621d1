"""What the batched transport hands out, in which order, and what it leaves in Redis."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Message, Producer, Queue

from fanout_workers.transport import Transport
from tests.integration.poolkit import DEADLINE_S, wait_for
from tests.integration.servers import binaries, running_server

OURS = "fanout_workers.transport:Transport"
STOCK = "redis"
QUEUE = Queue("work", Exchange(""), routing_key="work")


@pytest.fixture(scope="module", params=sorted(binaries()))
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    with running_server(request.param) as url:
        yield url


class Place:
    """One database of the server, through connections of either transport."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis = redis.Redis.from_url(url)

    @contextmanager
    def connected(self, transport: str = OURS, **options: Any) -> Iterator[Connection]:
        with Connection(self.url, transport=transport, transport_options=options) as connection:
            yield connection

    def publish(
        self, *values: Any, transport: str = STOCK, queue: str = "work", **how: Any
    ) -> None:
        with self.connected(transport) as connection:
            producer = Producer(connection, serializer="json")
            for value in values:
                producer.publish(value, exchange="", routing_key=queue, **how)

    def unacked(self) -> dict[bytes, Any]:
        return {tag: json.loads(entry) for tag, entry in self.redis.hgetall("unacked").items()}


@pytest.fixture
def place(server: str) -> Iterator[Place]:
    place = Place(server)
    place.redis.flushall()
    yield place
    place.redis.close()


class Reader:
    """Takes messages as they come."""

    def __init__(self, connection: Connection, *queues: Queue, **options: Any) -> None:
        self.connection = connection
        self.messages: list[Message] = []
        self.consumer = Consumer(
            connection,
            queues or [QUEUE],
            on_message=self.messages.append,
            accept=["json"],
            auto_declare=False,
            **options,
        )
        self.consumer.consume()

    def read(self, count: int) -> list[Any]:
        """The next `count` values."""
        start = len(self.messages)
        while len(self.messages) < start + count:
            self.connection.drain_events(timeout=DEADLINE_S)
        return [message.payload for message in self.messages[start:]]

    def has_more(self) -> bool:
        """Whether anything else is handed out."""
        count = len(self.messages)
        try:
            self.connection.drain_events(timeout=0.1)
        except TimeoutError:
            return False
        return len(self.messages) > count


@pytest.mark.parametrize("publisher", [STOCK, OURS])
def test_first_in_first_out(place: Place, publisher: str) -> None:
    place.publish(*range(150), transport=publisher)
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=200)
        assert reader.read(150) == list(range(150))
        assert len(place.unacked()) == 150
        for message in reader.messages:
            message.ack()
        assert place.redis.keys() == []


def test_the_highest_priority_first(place: Place) -> None:
    for priority in (9, 3, 0, 6):
        place.publish(*((priority, i) for i in range(3)), priority=priority)
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=50)
        assert reader.read(12) == [[priority, i] for priority in (0, 3, 6, 9) for i in range(3)]


def test_queues_take_turns(place: Place) -> None:
    names = ["a", "b", "c"]
    for name in names:
        place.publish(*([name] * 40), queue=name)
    queues = [Queue(name, Exchange(""), routing_key=name) for name in names]
    with place.connected() as connection:
        read = Reader(connection, *queues, prefetch_count=30).read(30)
    assert {name: read.count(name) for name in names} == {"a": 10, "b": 10, "c": 10}


def test_queues_in_a_strict_order(place: Place) -> None:
    for name in ("a", "b"):
        place.publish(*([name] * 10), queue=name)
    queues = [Queue(name, Exchange(""), routing_key=name) for name in ("b", "a")]
    with place.connected(queue_order_strategy="priority") as connection:
        assert Reader(connection, *queues, prefetch_count=15).read(15) == ["b"] * 10 + ["a"] * 5


def test_never_more_than_the_prefetch_count(place: Place) -> None:
    place.publish(*range(20))
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=5)
        reader.read(5)
        assert not reader.has_more()
        assert len(place.unacked()) == 5
        reader.messages[0].ack()
        reader.messages[1].reject()
        assert reader.read(2) == [5, 6]
        assert not reader.has_more()
        reader.consumer.qos(prefetch_count=8)
        assert reader.read(3) == [7, 8, 9]
        reader.consumer.qos(prefetch_count=2)
        for message in reader.messages[2:9]:
            message.ack()
        assert reader.read(1) == [10]
        assert not reader.has_more()


def test_without_a_limit_takes_no_more_than_is_asked_for(place: Place) -> None:
    place.publish(*range(3))
    with place.connected() as connection:
        assert Reader(connection).read(1) == [0]
        assert place.redis.llen("work") == 2


def test_what_is_noted_is_what_kombu_notes(place: Place) -> None:
    entries = []
    for transport in (STOCK, OURS):
        place.redis.flushall()
        place.publish("ä \U0001f600 \"'/\\", transport=transport, headers={"empty": [], "n": 1.5})
        raw = json.loads(place.redis.lindex("work", 0))
        with place.connected(transport) as connection:
            Reader(connection).read(1)
            (entry,) = place.unacked().values()
            assert entry == [raw, "", "work"]
            assert place.redis.zcard("unacked_index") == 1
        entry[0]["properties"]["delivery_tag"] = None
        entries.append(entry)
    assert entries[0] == entries[1]


@pytest.mark.parametrize("closer", [STOCK, OURS])
def test_what_is_not_acknowledged_goes_back_in_order(place: Place, closer: str) -> None:
    place.publish(*range(10))
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=4)
        reader.read(4)
        reader.messages[1].ack()
    assert place.unacked() == {}
    with place.connected(closer) as connection:
        reader = Reader(connection, prefetch_count=20)
        assert reader.read(9) == [0, 2, 3, 4, 5, 6, 7, 8, 9]
        assert [bool(m.delivery_info.get("redelivered")) for m in reader.messages] == (
            [True] * 3 + [False] * 6
        )


def test_a_requeued_message_is_the_last_and_comes_again(place: Place) -> None:
    place.publish(*range(3))
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=1)
        assert reader.read(1) == [0]
        reader.messages[0].requeue()
        for expected in (1, 2, 0):
            assert reader.read(1) == [expected]
            reader.messages[-1].ack()
        assert reader.messages[-1].delivery_info["redelivered"] is True
        assert place.redis.keys() == []


def test_what_runs_here_or_has_succeeded_here_is_not_handed_out_again(place: Place) -> None:
    place.publish("once")
    raw = place.redis.lindex("work", 0)
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=9)
        reader.read(1)
        place.redis.lpush("work", raw)
        assert not reader.has_more()
        assert len(place.unacked()) == 1
        reader.messages[0].ack()
        place.redis.lpush("work", raw)
        assert not reader.has_more()
        assert place.redis.keys() == []


def test_one_message_in_two_queues_is_two(place: Place) -> None:
    exchange = Exchange("topics", type="topic")
    queues = [Queue(name, exchange, routing_key="x.*") for name in ("a", "b")]
    with place.connected() as connection:
        for queue in queues:
            queue(connection.default_channel).declare()
        Producer(connection, exchange=exchange, serializer="json").publish(
            "both", routing_key="x.y"
        )
        assert Reader(connection, *queues, prefetch_count=9).read(2) == ["both", "both"]


def test_without_acknowledgements_nothing_is_noted(place: Place) -> None:
    place.publish("reply")
    with place.connected() as connection:
        assert Reader(connection, no_ack=True).read(1) == ["reply"]
        assert place.redis.keys() == []


def test_get_notes_too(place: Place) -> None:
    place.publish("a", priority=3)
    with place.connected() as connection:
        queue = QUEUE(connection.default_channel)
        message = queue.get()
        assert message.payload == "a"
        assert len(place.unacked()) == 1
        message.ack()
        assert queue.get() is None
        assert place.redis.keys() == []


def test_what_is_no_message_does_not_stop_the_others(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.redis.lpush("work", "{", "[]", '{"properties": {}}')
    place.publish("good")
    with place.connected() as connection:
        assert Reader(connection, prefetch_count=9).read(1) == ["good"]
    assert caplog.text.count("is no message") == 3


def test_a_message_that_only_python_can_read_is_noted_by_python(place: Place) -> None:
    place.publish("odd", headers={"half": "\ud83d"})
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=9)
        assert reader.read(1) == ["odd"]
        (entry,) = place.unacked().values()
        assert entry[0]["headers"]["half"] == "\ud83d"
        reader.messages[0].ack()
        assert place.redis.keys() == []


def test_a_key_of_another_type_costs_no_message(place: Place) -> None:
    place.publish("kept")
    place.redis.set("unacked", "a string")
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=9)
        with pytest.raises(redis.ConnectionError, match="WRONGTYPE"):
            reader.read(1)
        assert place.redis.llen("work") == 1
        place.redis.delete("unacked")
        assert reader.read(1) == ["kept"]


def test_keys_take_the_prefix(place: Place) -> None:
    for transport in (STOCK, OURS):
        with place.connected(transport, global_keyprefix="p:") as connection:
            Producer(connection, serializer="json").publish(
                transport, exchange="", routing_key="work"
            )
    with place.connected(global_keyprefix="p:") as connection:
        reader = Reader(connection, prefetch_count=9)
        assert reader.read(2) == [STOCK, OURS]
        assert set(place.redis.keys()) == {b"p:unacked", b"p:unacked_index"}
    assert set(place.redis.keys()) == {b"p:work"}


def test_a_new_message_wakes_an_idle_consumer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a consumer that nobody wakes looks once a second.
    monkeypatch.setattr(Transport, "brpop_timeout", 10 * DEADLINE_S)
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=9)
        assert not reader.has_more()  # it waits now
        for priority in (0, 9):
            publisher = threading.Thread(
                target=place.publish, args=("wake",), kwargs={"priority": priority}
            )
            publisher.start()
            assert reader.read(1) == ["wake"]
            publisher.join()


@pytest.mark.parametrize(("holder", "sweeper"), [(STOCK, OURS), (OURS, STOCK)])
def test_silent_consumers_lose_their_messages(place: Place, holder: str, sweeper: str) -> None:
    place.publish(*range(3))
    with place.connected(holder) as silent, place.connected(sweeper) as other:
        Reader(silent, prefetch_count=1).read(1)
        (tag,) = place.unacked()
        other.default_channel.visibility_timeout = 0.3

        def swept() -> bool:
            other.default_channel.qos.restore_visible(num=None, interval=1)
            return bool(place.redis.llen("work") == 3)

        if holder == OURS:  # a process that was killed renews nothing
            silent.default_channel.custody.holdings.held.clear()
        wait_for(swept, "the redelivery")
        assert place.unacked() == {}
        reader = Reader(other, prefetch_count=9)
        assert reader.read(3) == [0, 1, 2]
        assert reader.messages[0].delivery_tag == tag.decode()
        assert reader.messages[0].delivery_info["redelivered"] is True


def test_a_lost_script_is_loaded_again(place: Place) -> None:
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=9)
        place.publish("before")
        assert reader.read(1) == ["before"]
        place.redis.script_flush()
        place.publish("after")
        with pytest.raises(redis.ConnectionError, match="No matching script"):
            reader.read(1)
        assert reader.read(1) == ["after"]


def test_acknowledgements_outlive_the_connection(place: Place) -> None:
    place.publish("a")
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=9)
        reader.read(1)
        place.redis.client_kill_filter(_type="normal", skipme=True)
        reader.messages[0].ack()
        wait_for(lambda: place.unacked() == {}, "the acknowledgement")
