"""Records on their way into Redis, many in one call.

An item of a model server's takes a fraction of a millisecond here, and a call of its own to Redis
would be the largest part of it. So what is settled while a call is under way shares the next one;
nobody waits for company that may not come.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field

from fanout.errors import Unavailable

#: Records and bytes that one call carries at most: a script holds Redis up while it runs.
_MOST = 256
_MOST_BYTES = 4 * 2**20


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


class Settling:
    """Ends items by the batch, one call at a time for each job, in the order of asking.

    Args:
        settle: ends a batch; what it raises is raised to every caller of the batch.
    """

    def __init__(self, settle: Settle) -> None:
        self._settle = settle
        self._waiting: dict[str, deque[Ending]] = {}
        self._senders: set[asyncio.Task[None]] = set()

    async def end(self, job: str, ending: Ending) -> bool:
        """Whether this was the first end of the item.

        Raises:
            Unavailable: Redis is away, or refuses this record; the item may have ended yet.
        """
        waiting = self._waiting.get(job)
        if waiting is None:
            waiting = self._waiting[job] = deque()
            # No context: the first caller's would be kept alive by those who come after it.
            sender = asyncio.create_task(self._send(job, waiting), context=Context())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        waiting.append(ending)
        return await ending.won

    async def _send(self, job: str, waiting: deque[Ending]) -> None:
        try:
            while waiting:
                await self._send_batch(job, _taken(waiting))
        finally:
            del self._waiting[job]
            for ending in waiting:  # the loop is being closed
                ending.won.cancel()

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
