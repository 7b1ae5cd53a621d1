"""Keeps what this process holds from being handed out again, and settles it, whatever happens."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import redis
from kombu.log import get_logger

from .broker import Broker, Keys
from .holdings import Holdings, Place

logger = get_logger(__name__)

#: Renewals in one visibility timeout.
RENEWALS = 3
#: How often a command that failed is tried again, in seconds.
_RETRY_S = 1.0
#: How long the thread waits for Redis, in seconds.
_SOCKET_TIMEOUT_S = 5.0
#: The shortest visibility timeout, in seconds: the thread must not spin.
_SHORTEST_S = 0.1

_all: dict[Any, Custody] = {}


class Custody:
    """The messages of one broker in this process, and the thread that renews them.

    The thread has a connection of its own, so that it goes on while the worker's hub is busy or
    waits for its next attempt to connect. While no channel serves them, it also settles what is
    acknowledged and gives back what nobody wants any more.

    Args:
        broker: where the messages came from.
        timeout_s: the visibility timeout, after which Redis may hand out a message again.
    """

    def __init__(self, broker: Broker, timeout_s: float) -> None:
        self.broker = broker
        self.timeout_s = timeout_s
        self.holdings = Holdings(running_tags)
        self._servers: set[object] = set()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._renewed_at: float | None = None
        self._renewing_since: float | None = None

    def attach(self, channel: object) -> None:
        """A channel tells Redis, as soon as there is something to tell."""
        self._servers.add(channel)
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="unacked-renewal", daemon=True)
            self._thread.start()

    def detach(self, channel: object) -> None:
        """The channel is closed; the thread takes over, unless another one is there."""
        self._servers.discard(channel)
        self._wake.set()

    def renew(self) -> None:
        """Put off the redelivery of all that is held; raises redis-py's errors."""
        now = time.monotonic()
        # Redis is asked in any case: an outage must not go unnoticed, see `redeliver`.
        self.broker.renew(self.holdings.renewable() or [""])
        self._renewed_at = now
        if self._renewing_since is None:
            self._renewing_since = now

    def redeliver(self, limit: int | None, lookup: Callable[[str, str], Iterable[str]]) -> int:
        """Put back what others have held too long; raises redis-py's errors.

        What is held here is renewed first: the process may have been stopped. Nothing happens
        for a third of the timeout after an outage, in which the others may not have been able to
        renew what is theirs.
        """
        self.renew()
        since = self._renewing_since
        if since is None or time.monotonic() - since < self.timeout_s / RENEWALS:
            return 0
        return self.broker.redeliver(self.timeout_s, limit, lookup)

    def flush(self) -> None:
        """Tell Redis all that it has not been told; raises redis-py's errors."""
        while acks := self.holdings.take_acks(1000):
            try:
                self.broker.settle(acks)
            except BaseException:
                self.holdings.put_acks(acks)
                raise
        returns = self.holdings.take_returns()
        try:
            self.broker.give_back(returns)
        except BaseException:
            self.holdings.put_returns(returns)
            raise
        if not (discards := self.holdings.take_discards()):
            return
        try:
            self.broker.discard(discards)
        except BaseException:
            self.holdings.put_discards(discards)
            raise

    def abandon(self, *, counted: Collection[str] = ()) -> None:
        """Give everything back from any thread, because this process is about to end itself.

        Args:
            counted: delivery tags of what may be the cause.
        """
        for tag in list(self.holdings.held):
            self.holdings.give_back(tag, Place.FRONT, counted=tag in counted)
        self.flush()

    def close(self) -> None:
        """The process ends: give everything back."""
        self.holdings.lose(dict.fromkeys(self.holdings.held))
        try:
            self.flush()
        except redis.RedisError as error:
            logger.error(
                "Redis did not hear of %d acknowledgements and %d messages to be handed out "
                "again, which it will be in %s s: %r",
                *(len(self.holdings.acks), len(self.holdings.returns), self.timeout_s, error),
            )

    def _run(self) -> None:
        while True:
            self._wake.wait(self._pause())
            self._wake.clear()
            try:
                self._do_what_is_due()
            except (redis.RedisError, OSError) as error:
                if self._renewing_since is not None:
                    logger.warning("Cannot renew what this worker holds: %r", error)
                self._renewing_since = self._renewed_at = None
                time.sleep(_RETRY_S)
            except Exception:
                logger.exception("The renewal failed")
                time.sleep(_RETRY_S)

    def _do_what_is_due(self) -> None:
        if self._is_idle:
            self._renewing_since = self._renewed_at = None
            self.broker.close()  # it connects again when it is used again
            return
        if self._until_due() <= 0:
            self.renew()
        if not self._servers:
            self.flush()

    @property
    def _is_idle(self) -> bool:
        return not (self._servers or self.holdings.held or self.holdings.has_errands)

    def _until_due(self) -> float:
        if self._renewed_at is None:
            return 0.0
        return max(0.0, self._renewed_at + self.timeout_s / RENEWALS - time.monotonic())

    def _pause(self) -> float | None:
        if self._is_idle:
            return None
        if self._servers or not (self.holdings.has_errands or self.holdings.lost):
            return self._until_due()
        return min(self._until_due(), _RETRY_S)


def custody_of(params: dict[str, Any], keys: Keys, timeout_s: float) -> Custody:
    """The process' custody for the broker that redis-py reaches with `params`."""
    where = tuple(params.get(name) for name in ("host", "port", "path", "db"))
    identity = (*where, keys)
    custody = _all.get(identity)
    if custody is None:
        pool = redis.ConnectionPool(
            **{**params, "socket_timeout": params.get("socket_timeout") or _SOCKET_TIMEOUT_S}
        )
        client = redis.Redis(connection_pool=pool)
        custody = _all.setdefault(identity, Custody(Broker(client, keys), timeout_s))
    # Celery sets the option on each connection; the shortest one is safe for all.
    custody.timeout_s = max(_SHORTEST_S, min(custody.timeout_s, timeout_s))
    return custody


def running_tags() -> Collection[str] | None:
    """The delivery tags of the tasks that run in this Celery worker; None where there is none."""
    state = sys.modules.get("celery.worker.state")
    if state is None:
        return None
    for _ in range(10):
        try:
            requests = list(state.active_requests)
            break
        except RuntimeError:  # changed by another thread meanwhile
            continue
    else:
        return None
    properties = (request.request_dict.get("properties") or {} for request in requests)
    return {tag for found in properties if (tag := found.get("delivery_tag"))}


def custodies() -> list[Custody]:
    """All of this process."""
    return list(_all.values())


def _close_all() -> None:
    for custody in custodies():
        custody.close()


# A child has neither the messages nor the thread; its parent goes on with both.
os.register_at_fork(after_in_child=_all.clear)
atexit.register(_close_all)
