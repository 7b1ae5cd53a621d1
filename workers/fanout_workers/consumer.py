"""Celery's consumer, with a place for messages that are no items.

Celery's own writes a message's body into the log, where no document belongs, and forgets it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from celery.exceptions import NotRegistered
from celery.utils.objects import Bunch
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.log import get_logger

from fanout.queue import task_name

logger = get_logger(__name__)

#: The Celery task that runs the items of kinds which this worker does not have, to say so; and the
#: header with the kind's name.
UNKNOWN_KIND = task_name("?")
KIND = "x-fanout-kind"


class Consumer(CeleryConsumer):
    """Makes dead letters of what it cannot run; see `fanout_workers.transport`."""

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """A message that is none of Celery's."""
        _discard(message, "it is no task of Celery's")

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """A message whose body is not what its headers say."""
        _discard(message, f"its body cannot be read: {type(exc).__name__}")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A message of Celery's that lacks something, or of another content type."""
        _discard(message, f"it is no valid task: {type(exc).__name__}")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task that this worker does not have."""
        headers = message.headers
        name, task_id = headers.get("task"), headers.get("id")
        if not (isinstance(name, str) and isinstance(task_id, str)):
            _discard(message, "it names no task")
            return
        kind = name.removeprefix(task_name(""))
        if kind != name and UNKNOWN_KIND in self.strategies and name != UNKNOWN_KIND:
            # An item, perhaps of a job: it has to end.
            message.headers = {**headers, "task": UNKNOWN_KIND, KIND: kind}
            self.create_task_handler()(message)
            return
        _discard(message, f"there is no task {name[:100]!r}")
        with suppress(Exception):  # a courtesy to whoever waits for it
            request = Bunch(
                name=name, chord=None, root_id=None, correlation_id=None, reply_to=None,
                errbacks=None, ignore_result=False, id=task_id,
            )  # fmt: skip
            self.app.backend.mark_as_failure(task_id, NotRegistered(name), request=request)


def _discard(message: Any, reason: str) -> None:
    message.channel.discard(message, reason)
