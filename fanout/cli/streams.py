"""Standard streams that are closed, full or left by their reader end no command with a traceback.

A process whose standard output or error is closed (`>&-`) gives their numbers to the next files
that it opens: what is meant for the terminal would land in an output, or in Redis.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


class Unheeded:
    """A stream whose reader may be gone, or its disk full: what it does not take is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or do not; all of it counts as written."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, where it is taken."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mend_streams() -> None:
    """Let all three be open, and messages never be what fails.

    Data are another matter: a standard output that was closed refuses what is written to it.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # In their order, so each gets the lowest number, which is its own.
            os.open(os.devnull, mode)
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - the same
    if sys.stderr is None:
        sys.stderr = open(  # noqa: SIM115 - the same
            2, "w", encoding="utf-8", errors="backslashreplace", closefd=False
        )
    if not isinstance(cast(object, sys.stderr), Unheeded):
        sys.stderr = cast(TextIO, Unheeded(sys.stderr))


def silence_stdout() -> None:
    """What is still buffered for a standard output that takes nothing must not fail at the end."""
    null = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):
        os.dup2(null, sys.stdout.fileno())
    os.close(null)
