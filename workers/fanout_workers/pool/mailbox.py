"""A queue between two threads whose reader is woken once a burst, not once an item."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Bell:
    """Wakes a thread that polls file descriptors; no lock, so signal handlers may ring it."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """Readable after `ring`, until `silence`."""
        return self._reader.fileno()

    def ring(self) -> None:
        """Wake the thread."""
        with suppress(OSError):  # full: it rings already; closed: nobody is there
            self._writer.send(b"\0")

    def silence(self) -> None:
        """Stop ringing."""
        with suppress(OSError):
            self._reader.recv(4096)

    def close(self) -> None:
        """Let go of the descriptors."""
        self._reader.close()
        self._writer.close()


class Mailbox(Generic[T]):
    """First in, first out; written by any thread, also from a signal handler, read by one.

    `wake` must make the reader call `take` soon. There is no lock, because a signal handler
    that posts would wait for ever for one which the code below it holds.
    """

    __slots__ = ("_items", "_wake", "_woken")

    def __init__(self, wake: Callable[[], object]) -> None:
        self._items: deque[T] = deque()
        self._wake = wake
        self._woken = False

    def __bool__(self) -> bool:
        return bool(self._items)

    def post(self, item: T) -> None:
        """Add `item`; raises what `wake` raises."""
        self._items.append(item)
        self.ring()

    def ring(self) -> None:
        """Wake the reader unless a call is under way already."""
        if self._woken:
            return
        # Before the call: the reader may run, and clear the flag, before the call returns.
        self._woken = True
        try:
            self._wake()
        except BaseException:
            self._woken = False  # or nobody would ever ring again
            raise

    def take(self) -> list[T]:
        """All that is there, oldest first."""
        self._woken = False  # first: what is posted from here on rings again
        taken: list[T] = []
        while True:
            try:
                taken.append(self._items.popleft())
            except IndexError:
                return taken
