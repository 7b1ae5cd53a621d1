"""Ends a worker that is told to stop while Redis is out of reach.

A warm shutdown lets what is in flight finish, settles it, and sends the rest back; none of it can
be done without Redis, and each part would wait for it in its own way, for a minute or for ever.
Nothing is lost at such an end: what is not acknowledged is handed out again. The kernel closes the
connections, so the servers abort what is in flight.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fanout_workers import watchdog

log = logging.getLogger(__name__)

#: Seconds for which a worker that stops waits for Redis: a restart of it takes no longer. Less than
#: what is left of a lease that cannot be renewed, and half of what `docker stop` waits.
PATIENCE_S = 5.0
#: Looks in a row that find nothing, at least: a process may be suspended for longer than that.
LOOKS = 4
_EVERY_S = 0.5
_SOCKET_TIMEOUT_S = 1.0


class Parting:
    """Watches, from the begin of a stop on, whether Redis can be told of it.

    Args:
        is_there: whether Redis answers; may wait for a second.
        end: ends the process at once.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        is_there: Callable[[], bool],
        end: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_there = is_there
        self._end = end
        self._clock = clock
        self._began = False
        self._missed = 0
        self._since = 0.0

    def begin(self) -> None:
        """The worker stops; callable from any thread, and from a signal handler."""
        if not self._began:
            self._began = True
            threading.Thread(target=self._run, name="parting", daemon=True).start()

    def look(self) -> bool:
        """Look once; True if it was away for long enough."""
        if self._is_there():
            self._missed = 0
            return False
        if not self._missed:
            self._since = self._clock()
        self._missed += 1
        return self._missed >= LOOKS and self._clock() - self._since >= PATIENCE_S

    def _run(self) -> None:
        while not self.look():
            time.sleep(_EVERY_S)
        log.error(
            "Redis cannot be reached for %g s, and this worker has to stop: it aborts what is in "
            "flight. Whatever is not acknowledged is handed out again once Redis is back",
            PATIENCE_S,
        )
        self._end()


def parting_from(url: str) -> Parting:
    """A `Parting` for the Redis at `url`, which ends this process with status 0."""
    # A client of its own, which does not retry: the question is whether it answers now.
    client = redis.Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=_SOCKET_TIMEOUT_S,
        socket_timeout=_SOCKET_TIMEOUT_S,
    )

    def is_there() -> bool:
        try:
            client.ping()
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            return False
        except redis.RedisError:  # it answers, if with a complaint
            return True
        return True

    return Parting(is_there, lambda: watchdog.end_process(0))
