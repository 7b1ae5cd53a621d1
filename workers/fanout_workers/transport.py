"""Celery's Redis transport with what it needs to outlive its broker.

Usable by any Celery project: `broker_transport = "fanout_workers.transport:Transport"`. Keys and
messages are kombu's own.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis


class Channel(redis.Channel):
    """A channel that remembers how to reach the server after its connection has been taken away.

    At a lost connection Celery closes a channel twice; the second time kombu 5.7 looks up the
    server's address in a connection that is already gone, and the AttributeError ends the worker.
    """

    _remembered: dict[bool, dict[str, Any]]

    def _connparams(self, asynchronous: bool = False) -> Any:
        remembered = self.__dict__.setdefault("_remembered", {})
        if self.connection is None or self.connection.client is None:
            return dict(remembered[asynchronous])
        found: dict[str, Any] = super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call]
        remembered[asynchronous] = dict(found)
        return found


class Transport(redis.Transport):
    """kombu's Redis transport with that channel."""

    Channel = Channel
