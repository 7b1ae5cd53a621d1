"""What a command does when its job stalls: wait, leave, or run a command of the user's."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from fanout.aio import ended
from fanout.errors import UsageError
from fanout.stall.watch import Stall


@dataclass(frozen=True, slots=True)
class OnStall:
    """`--on-stall`, read.

    Attributes:
        stop: whether the job is paused and left.
        command: what to run, as words; empty = nothing.
    """

    stop: bool = False
    command: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> OnStall:
        """`wait`, `exit` or a command line, split as a shell splits it; no shell runs it.

        Raises:
            UsageError: it cannot be split, or there is no such program.
        """
        if text in ("wait", "exit"):
            return cls(stop=text == "exit")
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise UsageError(f"--on-stall {text!r}: {error}") from None
        if not words or shutil.which(words[0]) is None:
            raise UsageError(
                f"--on-stall {text!r}: there is no such program; it is wait, exit or a command"
            )
        return cls(command=words)


#: What a command does unless it is told otherwise.
WAIT = OnStall()


class Hook:
    """Runs the user's command beside the job, once a stall.

    Args:
        command: program and arguments.
        tell: told in a sentence when that goes wrong.
    """

    def __init__(self, command: tuple[str, ...], tell: Callable[[str], None]) -> None:
        self._command = command
        self._tell = tell
        self._running: asyncio.Task[None] | None = None

    def start(self, stall: Stall) -> None:
        """Run it, unless this stall has been told of before or the last run still goes on."""
        if stall.told == 1 and (self._running is None or self._running.done()):
            self._running = asyncio.create_task(self._run(stall), name="stall command")

    async def close(self) -> None:
        """Let it go on by itself: it may be what mends the stall."""
        if self._running is not None:
            await ended(self._running)

    async def _run(self, stall: Stall) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env={**os.environ, **environment(stall)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),  # data may go to stdout
            )
        except OSError as error:
            self._tell(f"the command of --on-stall cannot be run: {error}")
            return
        if code := await process.wait():
            self._tell(f"the command of --on-stall ended with exit code {code}")


def environment(stall: Stall) -> dict[str, str]:
    """What the command is told; nothing of a document."""
    return {
        "FANOUT_JOB": stall.job,
        "FANOUT_CAUSE": f"{stall.cause.where}: {stall.cause.words}",
        "FANOUT_OPEN": str(stall.open),
        "FANOUT_SECONDS": str(round(stall.seconds)),
    }
