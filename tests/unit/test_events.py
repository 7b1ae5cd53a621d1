"""What an item adds to Celery's events, on the way that Celery itself takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.exceptions import Reject
from celery.utils.imports import symbol_by_name
from celery.worker.request import create_request_cls

from fanout import ErrorInfo, Kind, Record, Timing, Usage
from fanout.flower.fields import NAMES
from fanout_workers import events

RECORD = Record(
    id="doc-1",
    status="ok",
    data={"total": 3},
    attempts=2,
    tier="heavy",
    endpoint="spark",
    model="gpt-oss",
    usage=Usage(prompt=900, completion=120, reasoning=40, cached=512),
    timing=Timing(queued_s=3.5, permit_s=0.25, ttft_s=1.5, total_s=30.0, tokens_per_s=4.0),
)
INVALID = RECORD.model_copy(
    update={
        "status": "invalid",
        "error": ErrorInfo(kind=Kind.TRUNCATED, message="the reply was cut", raw="private"),
    }
)
CANCELLED = RECORD.model_copy(
    update={"status": "cancelled", "error": ErrorInfo(kind="cancelled", message="was cancelled")}
)


class Eventer:
    """Takes the place of Celery's dispatcher."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        self.sent.append((type, fields))


class Message:
    """A delivered message, as far as a request looks at it."""

    content_type, content_encoding, body = "application/json", "utf-8", b""
    delivery_info: dict[str, Any] = {}  # noqa: RUF012
    properties: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, task_id: str) -> None:
        self.headers = {"id": task_id, "task": "fanout.extract", "ignore_result": True}
        self.payload = ([], {"id": "doc-1", "job": "job-1", "payload": {"text": "private"}}, {})


class Pool:
    """A request only looks up how to hand itself over."""

    def apply_async(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.fixture(autouse=True)
def _nothing_left() -> None:
    assert len(events._notes) == 0, "a test before this one left figures behind"


def request(eventer: Eventer, task_id: str = "t1") -> Any:
    """A request as a worker makes it for a task of fanout's."""
    app = Celery("test", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(
        name="fanout.extract",
        Request="fanout_workers.events:ItemRequest",
        acks_late=True,
        shared=False,
    )
    def run() -> None: ...

    task = app.tasks["fanout.extract"]
    made = create_request_cls(symbol_by_name(task.Request), task, Pool(), "w1", eventer, app=app)
    return made(Message(task_id), hostname="w1", eventer=eventer, app=app, task=task)


def noted(record: Record) -> tuple[str, dict[str, Any]]:
    """The event that ends a task which returned `record`."""
    eventer = Eventer()
    ending = request(eventer)
    events.note("t1", events.fields_of(record, "job-1"))
    ending.on_success((0, "{'data': 'private'}", 31.0))
    (sent,) = eventer.sent
    return sent


def test_fields_are_flat_scalars_under_the_names_that_flower_shows() -> None:
    fields = events.fields_of(RECORD, "job-1")
    assert fields == {
        "item": "doc-1",
        "job": "job-1",
        "status": "ok",
        "failure": None,
        "message": None,
        "tier": "heavy",
        "endpoint": "spark",
        "model": "gpt-oss",
        "tokens_in": 900,
        "tokens_out": 120,
        "tokens_reasoning": 40,
        "tokens_cached": 512,
        "tokens_per_s": 4.0,
        "ttft_s": 1.5,
        "queued_s": 3.5,
        "permit_s": 0.25,
        "total_s": 30.0,
        "attempts": 2,
    }
    assert {*fields} - {"message"} == set(NAMES)


def test_long_texts_are_cut() -> None:
    error = ErrorInfo(kind="input", message="m" * 9999)
    long = RECORD.model_copy(update={"id": "x" * 9999, "model": "y" * 9999, "error": error})
    fields = events.fields_of(long)
    assert {name for name in fields if len(str(fields[name])) == 200} == {
        "item",
        "model",
        "message",
    }
    assert len(json.dumps(fields)) < 2000


def test_success_carries_the_figures_and_not_the_data() -> None:
    name, fields = noted(RECORD)
    assert name == "task-succeeded"
    assert fields["runtime"] == 31.0
    assert (fields["item"], fields["job"], fields["tokens_in"]) == ("doc-1", "job-1", 900)
    assert fields["result"] == "ok"
    assert "private" not in str(fields)
    assert "message" not in fields
    json.dumps(fields)


def test_an_item_without_an_answer_is_announced_as_failed() -> None:
    name, fields = noted(INVALID)
    assert name == "task-failed"
    assert fields["exception"] == "truncated: the reply was cut"
    assert (fields["status"], fields["failure"]) == ("invalid", "truncated")
    assert "result" not in fields
    assert "private" not in str(fields)


def test_a_cancelled_item_is_no_failure() -> None:
    name, fields = noted(CANCELLED)
    assert name == "task-succeeded"
    assert (fields["status"], fields["result"]) == ("cancelled", "cancelled")


def test_the_start_says_which_item_it_is() -> None:
    eventer = Eventer()
    request(eventer).on_accepted(pid=7, time_accepted=0.0)
    assert eventer.sent == [("task-started", {"uuid": "t1", "item": "doc-1", "job": "job-1"})]


def test_a_task_that_left_no_figures_is_celerys_own_business() -> None:
    eventer = Eventer()
    request(eventer).on_success((0, "'kept'", 1.0))
    assert eventer.sent == [("task-succeeded", {"uuid": "t1", "result": "'kept'", "runtime": 1.0})]


def test_a_raised_error_takes_the_figures_away() -> None:
    eventer = Eventer()
    failing = request(eventer)
    events.note("t1", events.fields_of(RECORD))
    try:
        raise ValueError("broken after the note")
    except ValueError:
        failing.on_failure(ExceptionInfo(internal=True))
    assert [name for name, _ in eventer.sent] == ["task-failed"]


def test_a_requeued_delivery_takes_the_figures_away() -> None:
    eventer = Eventer()
    rejected = request(eventer)
    events.note("t1", events.fields_of(RECORD))
    try:
        raise Reject("stopping", requeue=True)
    except Reject:
        rejected.on_failure(ExceptionInfo())
    assert [name for name, _ in eventer.sent] == ["task-rejected"]


def test_a_revoked_task_takes_the_figures_away() -> None:
    eventer = Eventer()
    revoked = request(eventer)
    events.note("t1", events.fields_of(RECORD))
    revoked._announce_revoked("terminated", True, "15", False)
    assert [name for name, _ in eventer.sent] == ["task-revoked"]


def test_figures_that_nobody_fetches_are_bounded() -> None:
    notes = events._Notes(limit=3)
    for number in range(10):
        notes.put(f"t{number}", {"status": "ok"})
    assert len(notes) == 3
    assert notes.take("t9") == {"status": "ok"}
    assert notes.take("t0") == {}
