"""What a command says and does when its job stalls, and when Redis is away."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fanout.cli.console import complain, note, stderr
from fanout.cli.exits import Exit
from fanout.cli.live import Live
from fanout.client import Fanout, Job
from fanout.durations import duration
from fanout.errors import JobError, Unavailable
from fanout.stall import Stall, StallWatch
from fanout.stall.action import Hook, OnStall

#: Seconds that leaving may take to pause the job.
_PAUSE_S = 5.0


@asynccontextmanager
async def watched(fo: Fanout, job: Job, live: Live, on_stall: OnStall) -> AsyncIterator[StallWatch]:
    """Watch a job for as long as the block lasts; also where no progress is shown.

    Raises:
        Stalled: the job stalls, and was to be left then.
    """
    hook = Hook(on_stall.command, note) if on_stall.command else None

    async def told(stall: Stall) -> None:
        note(f"{stall.words()} ({_next(on_stall)})")
        if on_stall.stop and stall.cause.where == "output":
            await _leave(job, stall)
        if hook is not None:
            hook.start(stall)

    def ended(seconds: float) -> None:
        note(f"records come again, after {duration(seconds)} without one")

    fo.tell = note
    try:
        async with StallWatch(fo, job, on_stall=told, on_end=ended, stop=on_stall.stop) as watch:
            live.troubles = lambda: _troubles(fo, watch)
            yield watch
    finally:
        if hook is not None:
            await hook.close()


def _next(on_stall: OnStall) -> str:
    if on_stall.stop:
        return "the job is paused"
    return "still waiting" + (", and the command of --on-stall is run" if on_stall.command else "")


def _troubles(fo: Fanout, watch: StallWatch) -> list[str]:
    """Lines for the display."""
    lines = [fo.patience.words()] if fo.patience.away_since is not None else []
    if watch.stall is not None and watch.stall.cause.where != "redis":
        lines.append(f"stalled: {watch.stall.words()}")
    return lines


async def _leave(job: Job, stall: Stall) -> None:
    """End the process at once: a thread waits for the output, and would be waited for.

    What it has not written is not trimmed from Redis, and comes again when the job goes on.
    """
    with suppress(Unavailable, JobError, TimeoutError):
        async with asyncio.timeout(_PAUSE_S):
            await job.pause()
    complain(stall.words())
    stderr.file.flush()
    os._exit(Exit.INCOMPLETE)
