"""A sweep as a person follows it on stderr: a table that grows, or a line a point."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from fanout.aio import ended
from fanout.cli.console import note, plain, stderr
from fanout.cli.live import duration
from fanout.sweep.point import Point
from fanout.sweep.record import Sweep
from fanout.sweep.table import table
from fanout_workers.sweep.runner import Runner

_REFRESH_S = 0.25


class Display:
    """Shows sweeps for as long as the block lasts.

    Args:
        runners: what is swept.
        quiet: show nothing.
        keep: called after each point, to write down what there is.
    """

    def __init__(
        self, runners: Sequence[Runner], *, quiet: bool, keep: Callable[[], object]
    ) -> None:
        self._runners = runners
        self._quiet = quiet
        self._keep = keep
        self._live = Live(console=stderr, auto_refresh=False, transient=True)
        self._moving = stderr.is_terminal and not quiet
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Display:
        if self._moving:
            self._live.start()
            self._task = asyncio.create_task(self._refresh(), name="live display")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await ended(self._task)
            # The rows stay where the moving table was; the final one goes to stdout.
            with suppress(OSError):
                self._live.stop()

    def began(self, runner: Runner, n: int, why: str) -> None:
        if not self._quiet and not self._moving:
            note(f"{runner.endpoint.name}: N = {n} ({why}) …")

    def measured(self, runner: Runner, point: Point) -> None:
        self._keep()
        if not self._quiet and not self._moving:
            note(_line(runner.sweep, point))

    async def _refresh(self) -> None:
        while True:
            self._live.update(self._view(), refresh=True)
            await asyncio.sleep(_REFRESH_S)

    def _view(self) -> RenderableType:
        parts: list[RenderableType] = []
        for runner in self._runners:
            sweep = runner.sweep
            parts.append(Text(plain(f"{sweep.endpoint}  {sweep.model}", 120), style="bold"))
            parts.append(table(sweep, stderr.width))
            parts.append(_status(runner))
        return Group(*parts)


def _status(runner: Runner) -> Text:
    now, sender = runner.now, runner.sender
    if runner.sweep.ended is not None:
        return Text(f"done: {runner.sweep.ended}", style="dim")
    if not now.concurrency or sender is None:
        return Text("warming up …" if sender else "waiting …", style="dim")
    passed = time.monotonic() - now.began
    words = [
        f"N = {now.concurrency}: {sender.in_flight} in flight",
        duration(passed),
        f"{runner.tokens_per_s():,.1f} tokens/s so far",
    ]
    if (load := now.load) is not None:
        words += [f"running {load.running:.0f}"] if load.running is not None else []
        words += [f"waiting {load.waiting:.0f}"] if load.waiting else []
        words += [f"KV {load.kv:.0%}"] if load.kv is not None else []
    return Text("   ".join(words), style="cyan")


def _line(sweep: Sweep, point: Point) -> str:
    parts = [
        f"{sweep.endpoint}: N = {point.concurrency}",
        f"{point.tokens_per_s:,.2f} tokens/s",
        f"{point.per_sequence_tokens_per_s or 0:,.2f} each",
        f"{point.wall_s:.1f} s",
    ]
    parts += [f"{point.timeouts} timeouts"] if point.timeouts else []
    parts += [f"{count} {kind}" for kind, count in point.errors.items()]
    return "   ".join(parts)
