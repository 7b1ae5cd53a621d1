"""What asyncio leaves to be done by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

#: Seconds before a cancellation that has had no effect is repeated.
_AGAIN_S = 0.5
#: The same for a whole program, which may have to clean up meanwhile.
_PROGRAM_AGAIN_S = 3.0

_T = TypeVar("_T")


def run(program: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run`, but Ctrl-C ends the program even where a library swallows the cancellation.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """

    async def guarded() -> _T:
        task = asyncio.ensure_future(program)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await ended(task, _PROGRAM_AGAIN_S)
            raise

    return asyncio.run(guarded())


async def ended(task: asyncio.Task[Any], again_s: float | None = None) -> None:
    """Cancel `task` and return when it has ended; what it raised is dropped.

    Cancelled more than once if need be: redis-py swallows a cancellation that meets it while it
    connects (seen in 8.1), and a task that loops would then go on for ever.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=again_s or _AGAIN_S)
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not complain of it
