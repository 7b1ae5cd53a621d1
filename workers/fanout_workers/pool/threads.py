"""The few threads that run synchronous tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Threads:
    """At most `limit` threads, started as they are needed; calls wait in order for a free one.

    Daemon threads, unlike those of concurrent.futures: a call that never returns must not keep
    the process alive after a cold shutdown.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._open = 0  # calls submitted and not returned
        self._count = 0

    @property
    def count(self) -> int:
        """Threads that are alive."""
        return self._count

    def submit(self, call: Callable[[], None]) -> None:
        """Run `call`, which must not raise."""
        with self._lock:
            self._open += 1
            self._spawn_if_needed()
        self._calls.put(call)

    def replace(self) -> None:
        """Allow one thread more: one is held by a call that was given up."""
        with self._lock:
            self._limit += 1
            self._spawn_if_needed()

    def restore(self) -> None:
        """The call that was given up has returned: allow one thread less."""
        with self._lock:
            self._limit -= 1

    def stop(self) -> None:
        """Let the threads end as they become free; does not wait for them."""
        for _ in range(self._count):
            self._calls.put(None)

    def _spawn_if_needed(self) -> None:
        if self._count < min(self._open, self._limit):
            self._count += 1
            threading.Thread(target=self._work, name="AsyncPool-sync", daemon=True).start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # it holds the arguments of the task
            with self._lock:
                self._open -= 1
                if self._count > self._limit:
                    break
        with self._lock:
            self._count -= 1
