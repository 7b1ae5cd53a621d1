"""Task events that carry an item's figures, for Flower and every other reader of Celery's events.

The coroutine that ran an item leaves its figures with `note`; the request, which sends Celery's
events on another thread, takes them away with the event that ends the task.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.request import Request

from fanout import Record

#: An event is seen by every monitor and kept in its memory: no value is longer than this.
_TEXT_LIMIT = 200

#: Events that end a delivery: none of the same task follows from this worker.
_LAST = frozenset(
    {
        "task-succeeded",
        "task-failed",
        "task-revoked",
        "task-rejected",
        "task-retried",
        "task-cancelled",
    }
)

#: An item that ends so has no usable answer, although its Celery task returned a record.
_NO_ANSWER = frozenset({"failed", "invalid"})


class _Notes:
    """Figures by task id, until the task's last event takes them.

    Bounded, because not every task gets one: with events switched off Celery sends none. The
    limit is far above the number of items that a worker holds between their end and their event.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._fields: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._fields)

    def put(self, task_id: str, fields: Mapping[str, object]) -> None:
        with self._lock:
            self._fields[task_id] = dict(fields)
            self._fields.move_to_end(task_id)
            while len(self._fields) > self._limit:
                self._fields.popitem(last=False)

    def take(self, task_id: str) -> dict[str, Any]:
        with self._lock:
            return self._fields.pop(task_id, {})


_notes = _Notes()


def note(task_id: str, fields: Mapping[str, object]) -> None:
    """Leave an item's figures for the event that ends its Celery task.

    Args:
        task_id: Celery's id of the task.
        fields: `fields_of` its record.
    """
    _notes.put(task_id, fields)


def fields_of(record: Record, job: str | None = None) -> dict[str, Any]:
    """The flat event fields of a record and its job: names of `fanout.flower.fields`, JSON scalars.

    `failure` is the kind of a failure or None; `message`, its sentence, becomes the `exception`
    of a failed task. Seconds and tokens are those of the record.
    """
    error, usage, timing = record.error, record.usage, record.timing
    return {
        "item": _bounded(record.id),
        "job": _bounded(job),
        "status": record.status,
        "failure": str(error.kind) if error else None,
        "message": _bounded(error.message) if error else None,
        "tier": record.tier,
        "endpoint": record.endpoint,
        "model": _bounded(record.model),
        "tokens_in": usage.prompt,
        "tokens_out": usage.completion,
        "tokens_reasoning": usage.reasoning,
        "tokens_cached": usage.cached,
        "tokens_per_s": timing.tokens_per_s,
        "ttft_s": timing.ttft_s,
        "queued_s": timing.queued_s,
        "permit_s": timing.permit_s,
        "total_s": timing.total_s,
        "attempts": record.attempts,
    }


class ItemRequest(Request):
    """A Celery request whose events say which item it is and what became of it.

    A task that returned the record of an item without a usable answer is announced as failed, so
    that monitors show it so; Celery's stored result stays the record.
    """

    _content_type: Any
    time_limits: Any

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        if self._content_type:
            # Decoded already, and the task runs in this process: the tracer need not do it again.
            self._body = message.payload
            self._content_type = self._content_encoding = None
        if problem := _problem_of(self._body, self.time_limits):
            raise InvalidTaskError(problem)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send an event, with the item's figures where they are known."""
        name = type
        if name == "task-started":
            fields |= self._item()
        elif name in _LAST:
            name, fields = _final(name, fields, _notes.take(self.id))
        super().send_event(name, **fields)

    def _item(self) -> dict[str, Any]:
        kwargs = self._kwargs if isinstance(self._kwargs, dict) else {}
        return {"item": _bounded(kwargs.get("id") or self.id), "job": _bounded(kwargs.get("job"))}


def _problem_of(body: Any, limits: Any) -> str | None:
    """What Celery would stumble over only while it runs the task, or never get over."""
    match body:
        case [list(), dict(), dict() as embed]:
            for name in ("callbacks", "errbacks", "chain"):
                # Celery takes a text for a list of tasks, and sends each of its characters.
                if not all(isinstance(each, dict) for each in _listed(embed.get(name))):
                    return f"{name} are no tasks"
            if not isinstance(embed.get("chord"), dict | None):
                return "the chord is no task"
        case _:
            return "the body is not (args, kwargs, embed)"
    if not all(_is_limit(limit) for limit in _listed(limits)):
        return "a time limit is no number of seconds"
    return None


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_limit(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value < float("inf"))


def _final(name: str, fields: dict[str, Any], noted: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The last event with what was noted; a record without an answer turns into a failure."""
    if not noted:
        return name, fields
    message = noted.pop("message", None)
    if name == "task-succeeded":
        # The result is the record: a document's data, which no monitor has to see.
        fields.pop("result", None)
        if noted.get("status") in _NO_ANSWER:
            name = "task-failed"
            fields["exception"] = _bounded(f"{noted.get('failure')}: {message}")
        else:
            fields["result"] = noted.get("status")
    return name, {**fields, **noted}


def _bounded(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if type(value) is str else str(value)
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"
