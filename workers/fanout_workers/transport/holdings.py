"""Which messages this process has, and what has still to be said about them; without any I/O.

Delivery tags are the keys. A task's id would not do: a retry has the same.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

#: How many acknowledged messages are remembered, so that none of them runs again here.
REMEMBERED = 32_768


class Place(Enum):
    """Where in its queue a message goes back to; the value is Redis' command."""

    FRONT = "RPUSH"  # it is the next
    BACK = "LPUSH"


class Return(NamedTuple):
    """A message on its way back."""

    tag: str
    queue: str
    place: Place
    #: Whether it may be what ended its worker, which is then counted in the message.
    counted: bool = False


class Discard(NamedTuple):
    """What was in a queue and is no message."""

    queue: str
    reason: str
    message: bytes


class _Trace(weakref.ref[Any]):
    """Whether anybody can still acknowledge a message whose connection was lost."""

    __slots__ = ("tag",)
    tag: str

    def __new__(cls, message: Any, gone: Callable[[_Trace], None], tag: str) -> _Trace:
        trace = super().__new__(cls, message, gone)
        trace.tag = tag
        return trace

    def __init__(self, message: Any, gone: Callable[[_Trace], None], tag: str) -> None:
        super().__init__(message, gone)  # type: ignore[call-arg]


class Holdings:
    """The messages that were handed out to this process by one broker.

    It outlives connections: what was handed out on one that is lost is kept as long as somebody
    in the process has the message and could acknowledge it.

    Every change is a single operation on a dict or a deque, which no other thread, signal handler
    or garbage collection can interrupt; there is no lock that they could wait for in vain.

    Args:
        running: the delivery tags of the tasks that run, of what was lost; None if not known.
        remembered: how many acknowledged messages to remember.
    """

    def __init__(
        self,
        running: Callable[[], Collection[str] | None] = lambda: None,
        remembered: int = REMEMBERED,
    ) -> None:
        #: Queue by delivery tag.
        self.held: dict[str, str] = {}
        #: Those among them whose connection was lost.
        self.lost: dict[str, _Trace] = {}
        #: Acknowledged here, and not yet known to be so in Redis.
        self.acks: deque[str] = deque()
        self.returns: deque[Return] = deque()
        self.discards: deque[Discard] = deque()
        #: How many messages there have been.
        self.admitted = 0
        self._running = running
        self._remembered = remembered
        self._settled: dict[str, str] = {}

    @property
    def has_errands(self) -> bool:
        """Whether Redis has still to be told something."""
        return bool(self.acks or self.returns or self.discards)

    def admit(self, tag: str, queue: str) -> bool:
        """Take a message that was handed out; False if it is the redelivery of one that is here.

        The same tag in two queues is two messages: kombu publishes them so to two queues that
        are bound to one key.
        """
        if self.held.get(tag) == queue and self._is_cared_for(tag):
            return False
        if self._settled.get(tag) == queue:
            self.acks.append(tag)
            return False
        self.lost.pop(tag, None)
        self.held[tag] = queue
        self.admitted += 1
        return True

    def settle(self, tag: str) -> None:
        """The message was acknowledged, or rejected for good."""
        queue = self.held.pop(tag, None)
        self.lost.pop(tag, None)
        self.acks.append(tag)
        if queue is None:
            return
        self._settled[tag] = queue
        if len(self._settled) > self._remembered:
            with suppress(StopIteration, KeyError, RuntimeError):  # another thread was faster
                del self._settled[next(iter(self._settled))]

    def give_back(self, tag: str, place: Place, *, counted: bool = False) -> None:
        """The message shall be handed out again, to anybody."""
        queue = self.held.pop(tag, None)
        self.lost.pop(tag, None)
        if queue is not None:
            self.returns.append(Return(tag, queue, place, counted))

    def discard(self, queue: str, reason: str, message: bytes, tag: str | None = None) -> None:
        """What was in a queue is no message; `tag` if it was handed out nevertheless."""
        if tag is not None:
            self.settle(tag)
        self.discards.append(Discard(queue, reason, message))

    def lose(self, delivered: Mapping[str, Any | None]) -> None:
        """The connection that brought these messages is lost; None for one that nobody has seen."""
        for tag, message in delivered.items():
            if tag not in self.held:
                continue
            if message is None:
                self.give_back(tag, Place.FRONT)
            else:
                self.lost[tag] = _Trace(message, self._on_gone, tag)

    def renewable(self) -> list[str]:
        """The delivery tags that Redis must not hand out to anybody else."""
        tags = list(self.held)
        if not self.lost or (running := self._running()) is None:
            return tags
        # The rest of the lost ones comes back after the visibility timeout, if not before: a pool
        # may keep hold of a message, and yet have forgotten to start its task.
        return [tag for tag in tags if tag not in self.lost or tag in running]

    def take_acks(self, limit: int) -> list[str]:
        """Up to `limit` tags; `put_acks` returns them if Redis could not be told."""
        return _taken(self.acks, limit)

    def put_acks(self, tags: Iterable[str]) -> None:
        """Redis has perhaps not been told of these; to tell it twice does no harm."""
        self.acks.extendleft(tags)

    def take_returns(self) -> list[Return]:
        """All that are to go back, in the order in which they must be put back."""
        taken = _taken(self.returns, len(self.returns))
        # The last one goes to the front first, so that the first one ends up before it.
        front = [item for item in reversed(taken) if item.place is Place.FRONT]
        return [item for item in taken if item.place is Place.BACK] + front

    def put_returns(self, returns: Iterable[Return]) -> None:
        """Redis has perhaps not been told of these."""
        self.returns.extend(returns)

    def take_discards(self) -> list[Discard]:
        """All that is to become a dead letter."""
        return _taken(self.discards, len(self.discards))

    def put_discards(self, discards: Iterable[Discard]) -> None:
        """Redis has perhaps not been told of these."""
        self.discards.extend(discards)

    def _is_cared_for(self, tag: str) -> bool:
        trace = self.lost.get(tag)
        if trace is None:
            return True
        running = self._running()
        return trace() is not None and (running is None or tag in running)

    def _on_gone(self, trace: _Trace) -> None:
        if self.lost.get(trace.tag) is trace:
            self.give_back(trace.tag, Place.FRONT)


def _taken(queue: deque[T], limit: int) -> list[T]:
    taken: list[T] = []
    with suppress(IndexError):
        while len(taken) < limit:
            taken.append(queue.popleft())
    return taken
