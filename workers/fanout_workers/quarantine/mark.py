"""Which item's code a process was in when it ended: a number in memory that outlives it."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Coroutine
from contextvars import Context, ContextVar
from typing import Any

_BYTES = 8
_NOBODY = bytes(_BYTES)

#: The number of the item that a task belongs to.
current: ContextVar[int | None] = ContextVar("quarantine_item", default=None)


class Mark:
    """The number of the item whose code runs; shared between two processes.

    Args:
        fd: a file for it, opened by one of them.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _BYTES)

    def read(self) -> int | None:
        """The number, or None if no item's code runs."""
        value = int.from_bytes(self._memory[:_BYTES], "little")
        return value - 1 if value else None

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()

    def follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keep it up to date with the tasks of `loop` that have a `current`."""

        def make(
            loop: asyncio.AbstractEventLoop,
            coroutine: Any,
            context: Context | None = None,
            **options: Any,
        ) -> asyncio.Task[Any]:
            number = context.get(current) if context is not None else current.get()
            if number is not None and asyncio.iscoroutine(coroutine):
                coroutine = _Marked(coroutine, self._memory, number)
            return asyncio.Task(coroutine, loop=loop, context=context, **options)

        loop.set_task_factory(make)


class _Marked(Coroutine[Any, Any, Any]):
    """A coroutine whose steps leave their number while they run."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], memory: mmap.mmap, number: int) -> None:
        self._coroutine = coroutine
        self._memory = memory
        self._number = (number + 1).to_bytes(_BYTES, "little")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)

    def __await__(self) -> Any:
        raise TypeError("a task's coroutine is run by its task only")

    def send(self, value: Any) -> Any:
        self._memory[:_BYTES] = self._number
        try:
            return self._coroutine.send(value)
        finally:
            self._memory[:_BYTES] = _NOBODY

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        self._memory[:_BYTES] = self._number
        try:
            return self._coroutine.throw(typ if val is None else val)
        finally:
            self._memory[:_BYTES] = _NOBODY

    def close(self) -> None:
        self._coroutine.close()
