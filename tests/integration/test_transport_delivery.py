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

from fanout_workers.transport import Transport, delivery_count
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


def sweep(connection: Connection) -> None:
    """Hand out again what others have held for longer than a moment."""
    channel = connection.default_channel
    channel.visibility_timeout = 0.1
    channel.qos.restore_visible(num=None, interval=1)


@contextmanager
def silent(place: Place, count: int) -> Iterator[None]:
    """A consumer that takes `count` messages and is never heard of again."""
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=count)
        reader.read(count)
        holdings = connection.default_channel.custody.holdings
        holdings.held.clear()  # a process that was killed renews nothing
        connection.default_channel.qos._delivered.clear()
        holdings._settled.clear()
        yield


def count_of(message: Message) -> int:
    return delivery_count(message.headers)


def test_silent_consumers_are_counted_and_polite_ones_are_not(place: Place) -> None:
    place.publish("a")
    for times in (1, 2):
        with silent(place, 1), place.connected() as other:
            wait_for(lambda: sweep(other) or place.redis.llen("work"), "the redelivery")
        with place.connected() as polite:  # gives it back as it is closed
            reader = Reader(polite, prefetch_count=1)
            reader.read(1)
            assert count_of(reader.messages[0]) == times
            reader.messages[0].requeue()
            reader.read(1)
            assert count_of(reader.messages[1]) == times


def test_who_gives_up_counts_what_may_be_the_cause(place: Place) -> None:
    place.publish("cause", "other")
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=2)
        reader.read(2)
        custody = connection.default_channel.custody
        custody.abandon(counted={reader.messages[0].delivery_tag})
        connection.default_channel.qos._delivered.clear()
    with place.connected() as connection:
        reader = Reader(connection, prefetch_count=2)
        assert reader.read(2) == ["cause", "other"]
        assert [count_of(message) for message in reader.messages] == [1, 0]


def dead_letters(place: Place) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in place.redis.xrange("dead")]


def test_what_is_no_message_is_a_dead_letter(place: Place) -> None:
    rows = ["{", "[]", '{"properties": {}}', "NaN", b"\xff", "[" * 100_000, b"x" * 2000, ""]
    place.redis.lpush("work", *rows)
    place.publish("good")
    options = {"dead_letter_key": "dead", "longest_message": 100_001}
    with place.connected(**options) as connection:
        assert Reader(connection, prefetch_count=99).read(1) == ["good"]
        connection.default_channel.custody.flush()
    kept = [fields[b"message"] for fields in dead_letters(place)]
    assert sorted(kept) == sorted(
        (row.encode() if isinstance(row, str) else row)[:65536] for row in rows
    )
    assert place.redis.hlen("unacked") == 0


def test_a_message_that_lua_reads_and_python_does_not_leaves_nothing_behind(place: Place) -> None:
    place.publish("mine")
    raw = place.redis.lindex("work", 0)
    forged = raw.replace(b'"headers": {}', b'"headers": {"x": "\xff"}')
    assert forged != raw
    place.redis.lpush("work", forged)
    with place.connected(dead_letter_key="dead") as connection:
        reader = Reader(connection, prefetch_count=9)
        assert reader.read(1) == ["mine"]
        connection.default_channel.custody.flush()
        (entry,) = place.unacked().values()  # the good one's, although the tag is the same
        assert entry[0] == json.loads(raw)
        reader.messages[0].ack()
        assert place.redis.hlen("unacked") == 0
    place.redis.flushall()
    place.redis.lpush("work", forged)
    with place.connected(dead_letter_key="dead") as connection:
        assert not Reader(connection, prefetch_count=9).has_more()
        connection.default_channel.custody.flush()
        assert place.redis.hlen("unacked") == place.redis.zcard("unacked_index") == 0
    assert [fields[b"message"] for fields in dead_letters(place)] == [forged]


def test_what_is_too_long_is_not_even_read(place: Place) -> None:
    place.publish("x" * 100_000, "good")
    with place.connected(dead_letter_key="dead", longest_message=50_000) as connection:
        assert Reader(connection, prefetch_count=9).read(1) == ["good"]
    (letter,) = dead_letters(place)
    assert int(letter[b"bytes"]) > 100_000
    assert len(letter[b"message"]) == 65536
    assert letter[b"reason"] == b"empty or too long"


def test_dead_letters_are_bounded(place: Place) -> None:
    place.redis.lpush("work", *["{"] * 500)
    with place.connected(dead_letter_key="dead", dead_letter_limit=10) as connection:
        reader = Reader(connection, prefetch_count=999)
        wait_for(lambda: not reader.has_more() and not place.redis.llen("work"), "the end")
        connection.default_channel.custody.flush()
    assert 0 < place.redis.xlen("dead") < 200  # Redis trims by the node


def test_garbage_among_the_unacknowledged_holds_nobody_up(place: Place) -> None:
    place.publish("good")
    with silent(place, 1), place.connected(dead_letter_key="dead") as other:
        garbage = [
            "{",
            "[]",
            '["a", "", "work"]',
            "[{}, [], {}]",
            '[{"properties": 1}, "", "work"]',
        ]
        for number, entry in enumerate(garbage):
            place.redis.hset("unacked", f"tag-{number}", entry)
            place.redis.zadd("unacked_index", {f"tag-{number}": 1})
        place.redis.zadd("unacked_index", {"tag without an entry": 1})
        wait_for(lambda: sweep(other) or place.redis.llen("work"), "the redelivery")
        assert place.unacked() == {}
        assert place.redis.zcard("unacked_index") == 0
        assert sorted(letter[b"message"].decode() for letter in dead_letters(place)) == sorted(
            garbage
        )


def test_a_consumer_that_stumbles_over_a_message_goes_on(place: Place) -> None:
    place.publish("bad", "good")

    def take(message: Message) -> None:
        if message.payload == "bad":
            raise KeyError("no such thing")
        reader.messages.append(message)

    with place.connected(dead_letter_key="dead") as connection:
        reader = Reader(connection, prefetch_count=9)
        reader.consumer.on_message = take
        assert reader.read(1) == ["good"]
        connection.default_channel.custody.flush()
        assert len(place.unacked()) == 1
    (letter,) = dead_letters(place)
    assert letter[b"reason"].startswith(b"KeyError")


@pytest.fixture
def full(place: Place) -> Iterator[Place]:
    """Full as soon as something is in it."""
    yield place
    place.redis.config_set("maxmemory", 0)


def test_a_full_server_hands_out_renews_and_forgets(full: Place) -> None:
    full.publish(*range(3))
    with full.connected(dead_letter_key="dead") as connection:
        reader = Reader(connection, prefetch_count=2)
        full.redis.config_set("maxmemory", 1)
        with pytest.raises(redis.OutOfMemoryError):
            full.redis.set("key", "value")
        assert reader.read(2) == [0, 1]
        custody = connection.default_channel.custody
        (before, _) = [score for _, score in full.redis.zrange("unacked_index", 0, -1, False, True)]
        custody.renew()
        assert full.redis.zrange("unacked_index", 0, -1, withscores=True)[0][1] > before
        reader.messages[0].ack()
        reader.messages[1].requeue()
        assert reader.read(2) == [2, 1]
        assert len(full.unacked()) == 2
