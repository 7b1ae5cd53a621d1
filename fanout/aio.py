"""What asyncio leaves to be done by hand."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fanout.signals import handled

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

    starting, runner = guarded(), asyncio.Runner()
    try:
        with _held_back():  # half a loop would complain on standard error when it is thrown away
            runner.get_loop()
        return runner.run(starting)
    finally:
        runner.close()
        # For an interruption before they began: asyncio would warn of what was never awaited.
        starting.close()
        program.close()


@contextmanager
def _held_back() -> Iterator[None]:
    """Signals that end a program take effect afterwards."""
    came: list[int] = []
    try:
        with handled(
            lambda number, _: came.append(number), signal.SIGINT, signal.SIGTERM, signal.SIGHUP
        ):
            yield
    finally:
        for caught in came:
            signal.raise_signal(caught)


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
