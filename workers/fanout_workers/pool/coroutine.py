"""A task's coroutine as asyncio sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol

from celery.exceptions import SoftTimeLimitExceeded


class SoftLimit(SoftTimeLimitExceeded, asyncio.CancelledError):
    """A soft time limit that unwinds asyncio's own code as a cancellation does.

    What runs between the task's code and the loop (task groups, `wait_for`, connection pools)
    cleans up on CancelledError and would leave children running on anything else; the task's
    code sees a SoftTimeLimitExceeded, which is an Exception.
    """


class Run(Protocol):
    """What a coroutine reports to."""

    def take_soft_limit(self) -> SoftLimit | None:
        """What to raise in place of a cancellation, if anything."""

    def finish(self, value: Any, error: BaseException | None) -> None:
        """The coroutine has returned `value` or raised `error`."""


class JobCoroutine(Coroutine[Any, Any, None]):
    """Reports the end of `coroutine` to `run`, and never raises.

    An exception would reach asyncio, which ends the whole loop for a SystemExit. Other
    attributes (`cr_frame`, `__qualname__`, ...) are those of the coroutine, because debuggers
    and anyio look at them.
    """

    __slots__ = ("_coroutine", "_run")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], run: Run) -> None:
        self._coroutine = coroutine
        self._run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("a job's coroutine is run by its pool only")

    def send(self, value: Any) -> Any:
        """Go on; returns what the coroutine waits for."""
        return self._step(self._coroutine.send, value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        """Go on with an exception."""
        error = val if val is not None else typ
        if isinstance(error, type):
            error = error()
        if isinstance(error, asyncio.CancelledError):
            error = self._run.take_soft_limit() or error
        return self._step(self._coroutine.throw, error)

    def close(self) -> None:
        """Give the coroutine up."""
        self._coroutine.close()

    def _step(self, advance: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return advance(argument)
        except StopIteration as stop:
            self._run.finish(stop.value, None)
        except BaseException as error:  # noqa: BLE001  # see the class
            self._run.finish(None, error)
        raise StopIteration
