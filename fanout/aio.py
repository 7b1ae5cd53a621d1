"""What asyncio leaves to be done by hand."""

from __future__ import annotations

import asyncio
from typing import Any

#: Seconds before a cancellation that has had no effect is repeated.
_AGAIN_S = 0.5


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and return when it has ended; what it raised is dropped.

    Cancelled more than once if need be: redis-py swallows a cancellation that meets it while it
    connects (seen in 8.1), and a task that loops would then go on for ever.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_AGAIN_S)
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not complain of it
