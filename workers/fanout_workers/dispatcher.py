"""Celery's event dispatcher, sending what happens to tasks a few times a second.

Celery's own one sends a message to the broker with each tick of its event loop, and that costs more
than running an item does. Events of tasks go as a list in one message, as Celery's do; Flower
and every other receiver of Celery's reads both.
"""

from __future__ import annotations

import time
from time import time as now
from typing import Any

import orjson
from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher
from celery.utils.time import utcoffset
from celery.worker import state
from kombu.asynchronous import get_event_loop

#: The shortest time between two messages, in seconds, and the most events in one.
EVERY_S = 0.1
LIMIT = 1000
#: What is not a field of an event but says how to send it.
_OPTIONS = frozenset({"blind", "utcoffset", "retry", "retry_policy", "Event"})


class Events(CeleryEvents):
    """What a Celery app takes as `events` to use that dispatcher."""

    dispatcher_cls = "fanout_workers.dispatcher:Dispatcher"


class Dispatcher(EventDispatcher):
    """Sends the first event at once and what follows within `EVERY_S` seconds together.

    Used from one thread, that of the worker's hub.
    """

    on_send_buffered: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.buffer_limit = LIMIT
        self._flush_soon = self.on_send_buffered
        self._flush_is_due = False
        self._flushed_at = float("-inf")
        self._utcoffset = utcoffset()
        if self.on_send_buffered is not None:
            self.on_send_buffered = self._schedule

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send an event, as Celery's own one does, in less time for those that are held back."""
        group = type.partition("-")[0]
        if (
            not self.enabled
            or group not in self.buffer_group
            or (self.groups and group not in self.groups)
            or not _OPTIONS.isdisjoint(fields)
        ):
            super().send(type, **fields)
            return
        if not self._flush_is_due:  # once a message: it takes longer than all the rest
            self._utcoffset = utcoffset()
        buffer = self._group_buffer[group]
        buffer.append(
            {
                "hostname": self.hostname,
                "utcoffset": self._utcoffset,
                "pid": self.pid,
                "clock": self.clock.forward(),
                "timestamp": now(),
                **fields,
                "type": type,
            }
        )
        if len(buffer) >= self.buffer_limit:
            self.flush()
        elif self.on_send_buffered:
            self.on_send_buffered()

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Send what has been held back."""
        self._flush_is_due = False
        self._flushed_at = time.monotonic()
        super().flush(errors, groups)

    def extend_buffer(self, other: EventDispatcher) -> None:
        """Take over what a dispatcher whose connection was lost could not send."""
        super().extend_buffer(other)
        for group, events in other._group_buffer.items():
            self._group_buffer[group].extend(events)

    def _schedule(self) -> None:
        if self._flush_is_due:
            return
        self._flush_is_due = True
        wait = self._flushed_at + EVERY_S - time.monotonic()
        hub: Any = get_event_loop()
        # A worker that stops runs its hub no longer than it must.
        if wait <= 0 or hub is None or _is_stopping():
            self._flush_soon()
        else:
            hub.call_later(wait, self._flush_soon)

    def _publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        if producer is None or not isinstance(event, list):
            super()._publish(event, producer, routing_key, **options)
            return
        try:
            producer.publish(
                orjson.dumps(event, default=str),
                content_type="application/json",
                content_encoding="utf-8",
                routing_key=routing_key,
                exchange=self.exchange.name,
                declare=[self.exchange],
                headers=self.headers,
                delivery_mode=self.delivery_mode,
            )
        except Exception:
            if not self.buffer_while_offline:
                raise
            self._outbound_buffer.append((event, routing_key))


def _is_stopping() -> bool:
    # False means "go on", and 0 is the exit status of a worker that stops.
    return any(
        flag is not None and flag is not False
        for flag in (state.should_stop, state.should_terminate)
    )
