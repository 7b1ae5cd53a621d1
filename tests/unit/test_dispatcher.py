"""When Celery's events leave a worker, and in what form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from celery.events.receiver import EventReceiver

from fanout_workers import dispatcher
from fanout_workers.dispatcher import EVERY_S, Dispatcher, Events


class Hub:
    """Keeps what it is asked to call later."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Any]] = []

    def call_later(self, seconds: float, call: Any) -> None:
        self.timers.append((seconds, call))


class Producer:
    def __init__(self) -> None:
        self.sent: list[tuple[Any, dict[str, Any]]] = []
        self.error: Exception | None = None

    def publish(self, body: Any, **options: Any) -> None:
        if self.error:
            raise self.error
        self.sent.append((body, options))

    def events(self) -> list[list[str]]:
        """The types of the events, by message."""
        return [[event["type"] for event in json.loads(body)] for body, _ in self.sent]


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(dispatcher, "get_event_loop", lambda: made)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(dispatcher, "time", made)
    return made


def dispatcher_with(producer: Producer) -> Any:
    app = Celery("t", broker="memory://", events=Events, set_as_current=False)
    # As Celery's bootstep makes it; the flush of a tick comes at once here.
    made: Any = app.events.Dispatcher(
        app.connection_for_write(),
        hostname="w",
        buffer_group=["task"],
        on_send_buffered=lambda: made.flush(),
    )
    assert isinstance(made, Dispatcher)
    made.producer = producer
    return made


def test_the_first_event_leaves_at_once_and_the_next_ones_together(hub: Hub, clock: Clock) -> None:
    producer = Producer()
    events = dispatcher_with(producer)
    events.send("task-received", uuid="1")
    assert producer.events() == [["task-received"]]
    clock.now += EVERY_S / 4
    events.send("task-started", uuid="1")
    events.send("task-succeeded", uuid="1")
    assert len(producer.sent) == 1
    ((wait, flush),) = hub.timers
    assert wait == pytest.approx(EVERY_S * 3 / 4)
    clock.now += wait
    flush()
    assert producer.events()[1:] == [["task-started", "task-succeeded"]]
    clock.now += EVERY_S
    events.send("task-received", uuid="2")
    assert producer.events()[2:] == [["task-received"]]


def test_a_message_holds_no_more_than_it_may(
    hub: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "LIMIT", 3)
    producer = Producer()
    events = dispatcher_with(producer)
    for number in range(8):
        events.send("task-started", uuid=str(number))
    assert [len(types) for types in producer.events()] == [1, 3, 3]
    assert hub.timers


def test_a_worker_that_stops_holds_nothing_back(
    hub: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = Producer()
    events = dispatcher_with(producer)
    events.send("task-started", uuid="1")
    monkeypatch.setattr(dispatcher.state, "should_stop", 0)  # an exit status, and not False
    events.send("task-succeeded", uuid="1")
    assert producer.events() == [["task-started"], ["task-succeeded"]]
    assert not hub.timers


def test_other_events_are_not_held_back(hub: Hub, clock: Clock) -> None:
    producer = Producer()
    events = dispatcher_with(producer)
    events.send("task-started", uuid="1")
    events.send("worker-heartbeat")
    (_, (heartbeat, _)) = producer.sent
    assert heartbeat["type"] == "worker-heartbeat"


def test_celerys_receiver_reads_what_is_sent(hub: Hub, clock: Clock) -> None:
    producer = Producer()
    events = dispatcher_with(producer)
    events.send("task-succeeded", uuid="1", runtime=0.5, odd={1}, item="doc-é")
    (body, options) = producer.sent[0]
    assert options["content_type"] == "application/json"
    assert options["routing_key"] == "task.multi"
    seen: list[dict[str, Any]] = []
    receiver = EventReceiver.__new__(EventReceiver)
    receiver.clock = events.clock
    receiver.adjust_clock, receiver.handlers = events.clock.adjust, {"*": seen.append}
    receiver._receive(json.loads(body), None)
    (event,) = seen
    assert (event["type"], event["uuid"], event["runtime"]) == ("task-succeeded", "1", 0.5)
    assert (event["item"], event["hostname"], event["odd"]) == ("doc-é", "w", "{1}")


def test_what_a_lost_connection_has_held_back_is_sent_over_the_next(hub: Hub, clock: Clock) -> None:
    lost, producer = Producer(), Producer()
    before = dispatcher_with(lost)
    before.send("task-received", uuid="1")
    before.send("task-started", uuid="1")  # held back
    lost.error = ConnectionError("gone")
    before.flush()
    before.send("task-succeeded", uuid="1")  # held back
    after = dispatcher_with(producer)
    after.extend_buffer(before)
    after.flush()
    assert producer.events() == [["task-started"], ["task-succeeded"]]


def test_an_event_that_is_held_back_has_all_that_celerys_own_has(hub: Hub, clock: Clock) -> None:
    producer = Producer()
    events = dispatcher_with(producer)
    events.send("task-started", uuid="1")
    (sent,) = json.loads(producer.sent[0][0])
    own = events._prepare_event("task-started", {"uuid": "1"})
    assert sent.keys() == own.keys()
    changing = {"clock", "timestamp"}
    assert {k: sent[k] for k in own.keys() - changing} == {k: own[k] for k in own.keys() - changing}
    assert own["clock"] == sent["clock"] + 1
    assert own["timestamp"] - 60 < sent["timestamp"] <= own["timestamp"]
