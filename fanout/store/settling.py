"""Records on their way into Redis, many in one call.

A call of its own to Redis would be the largest part of what an item costs, and what ends together
is also acknowledged and replaced together. So what is settled while a call is under way shares the
next one, and where a linger is given the next one waits for company that long after the last. What
comes after a pause goes at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field

from fanout.errors import Unavailable

#: Records and bytes that one call carries at most: a script holds Redis up while it runs.
_MOST = 256
_MOST_BYTES = 4 * 2**20
#: Records that are company enough.
_ENOUGH = 16


@dataclass(frozen=True, slots=True)
class Ending:
    """How one item of a job ends: `record` is its JSON, `submitted` counts it as submitted too."""

    ordinal: int
    status: str
    record: bytes
    submitted: bool
    won: asyncio.Future[bool] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


#: Ends items of one job in one step: for each True, False (it had ended before), or what Redis
#: says against it.
Settle = Callable[[str, Sequence[Ending]], Awaitable[Sequence[bool | Exception]]]


class _Line:
    """What waits of one job."""

    def __init__(self) -> None:
        self.waiting: deque[Ending] = deque()
        self.is_enough = asyncio.Event()


class Settling:
    """Ends items by the batch, one call at a time for each job, in the order of asking.

    Args:
        settle: ends a batch; what it raises is raised to every caller of the batch.
        linger_s: seconds between two calls, at least, unless there is much to carry.
    """

    def __init__(self, settle: Settle, linger_s: float = 0.0) -> None:
        self._settle = settle
        self._linger_s = linger_s
        self._lines: dict[str, _Line] = {}
        self._senders: set[asyncio.Task[None]] = set()

    async def end(self, job: str, ending: Ending) -> bool:
        """Whether this was the first end of the item.

        Raises:
            Unavailable: Redis is away, or refuses this record; the item may have ended yet.
        """
        line = self._lines.get(job)
        if line is None:
            line = self._lines[job] = _Line()
            # No context: the first caller's would be kept alive by those who come after it.
            sender = asyncio.create_task(self._send(job, line), context=Context())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        line.waiting.append(ending)
        if len(line.waiting) >= _ENOUGH:
            line.is_enough.set()
        return await ending.won

    async def _send(self, job: str, line: _Line) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while line.waiting:
                next_at = clock() + self._linger_s
                await self._send_batch(job, _taken(line.waiting))
                await self._linger(line, next_at - clock())
        finally:
            del self._lines[job]
            for ending in line.waiting:  # the loop is being closed
                ending.won.cancel()

    async def _linger(self, line: _Line, seconds: float) -> None:
        line.is_enough.clear()
        if seconds <= 0 or len(line.waiting) >= _ENOUGH:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await line.is_enough.wait()

    async def _send_batch(self, job: str, batch: Sequence[Ending]) -> None:
        outcomes: Sequence[bool | Exception]
        try:
            outcomes = await self._settle(job, batch)
        except Exception as error:  # noqa: BLE001 - every caller of the batch has to hear of it
            outcomes = [error] * len(batch)
        except BaseException:
            for ending in batch:
                ending.won.cancel()
            raise
        for ending, outcome in zip(batch, outcomes, strict=True):
            if ending.won.done():  # its caller was cancelled
                continue
            if isinstance(outcome, Exception):
                ending.won.set_exception(_own(outcome))
            else:
                ending.won.set_result(outcome)


def _taken(waiting: deque[Ending]) -> list[Ending]:
    """The next batch, removed from what waits; one large record is a batch by itself."""
    batch: list[Ending] = []
    size = 0
    while waiting and len(batch) < _MOST:
        size += len(waiting[0].record)
        if batch and size > _MOST_BYTES:
            break
        batch.append(waiting.popleft())
    return batch


def _own(error: Exception) -> Exception:
    """An exception for one caller: each that raises it adds its traceback to it."""
    if not isinstance(error, Unavailable):
        return error
    own = Unavailable(*error.args)
    own.__cause__ = error
    return own
