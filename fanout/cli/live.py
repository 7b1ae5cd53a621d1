"""The display while a job runs: done / total, in flight, records/s, tokens/s, ETA."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fanout.aio import ended
from fanout.cli.console import note, plain, stderr
from fanout.client import Job
from fanout.errors import JobError, Unavailable
from fanout.report import Rate, Report
from fanout.store import Store, WorkerInfo

_REFRESH_S = 0.25
#: Without a terminal one line that often, in seconds.
_LINE_S = 10.0


class Live:
    """Shows a job on stderr for as long as the block lasts.

    Args:
        store: asked for the workers' reports.
        job: the job shown.
        report: the figures so far, kept up to date by the caller.
        total: number of items, if known from the start.
        quiet: show nothing.
        bar: show a bar that moves, where there is a terminal; else a line now and then.
    """

    def __init__(
        self,
        store: Store,
        job: Job,
        report: Report,
        *,
        total: int | None,
        quiet: bool,
        bar: bool = True,
    ) -> None:
        self._store = store
        self._job = job
        self._report = report
        self._total = total
        # Records of earlier runs are in the job's counts, and not in this run's report.
        self._before = job.ledger.counts.total()
        self._quiet = quiet
        self._bar = bar and stderr.is_terminal
        #: More lines below the bar: what is wrong, as the command knows it.
        self.troubles: Callable[[], list[str]] = list
        self._told: list[str] = []
        self._tokens = Rate(span=30.0)
        self._records = Rate(span=30.0)
        self._workers: tuple[WorkerInfo, ...] = ()
        self._asked = False
        self._began = time.monotonic()
        self._rich = RichLive(console=stderr, auto_refresh=False, transient=True)
        self._watcher: asyncio.Task[None] | None = None
        self._line_at = self._began + _LINE_S

    async def __aenter__(self) -> Self:
        if not self._quiet:
            if self._bar:
                self._rich.start()
            note(f"job {self._job.id}")
            self._watcher = asyncio.create_task(self._watch(), name="live display")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watcher is not None:
            await ended(self._watcher)
            self._rich.stop()

    def refresh(self) -> None:
        """Note new figures, and show them."""
        self._tokens.add(self._report.completion_tokens)
        self._records.add(self._report.done)
        if self._quiet:
            return
        if self._bar:
            self._rich.update(self._view(), refresh=True)
            return
        if (problems := self._problems()) != self._told:
            self._told = problems
            for problem in problems:
                note(problem)
        if time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + _LINE_S
            note("  ".join(cell.plain for cell in self._cells()))

    async def _watch(self) -> None:
        # Two tasks: the display goes on while Redis does not answer.
        asking = asyncio.create_task(self._ask(), name="live figures")
        try:
            while True:
                self.refresh()
                await asyncio.sleep(_REFRESH_S)
        finally:
            await ended(asking)

    async def _ask(self) -> None:
        while True:
            try:
                self._workers = tuple(await self._store.workers(self._job.spec.tier))
                self._asked = True
                info = await self._job.info()
                if info.state != "open":
                    self._total = info.counts.submitted - self._before
            except Unavailable:
                self._workers, self._asked = (), False  # nothing is known of them
            except JobError:
                pass  # Redis has lost it, and it is being mended
            await asyncio.sleep(_REFRESH_S)

    def _view(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        bar = ProgressBar(
            total=self._total, completed=self._report.done, width=30, complete_style="cyan"
        )
        grid.add_row(bar, *self._cells())
        outer = Table.grid()
        outer.add_row(grid)
        # What the command has found out says more than what is seen here.
        for problem in [plain(trouble) for trouble in self.troubles()] or self._problems():
            outer.add_row(Text(problem, style="yellow"))
        return outer

    def _cells(self) -> list[Text]:
        done, total = self._report.done, self._total
        in_flight = sum(sum(worker.in_flight.values()) for worker in self._workers)
        capacity = sum(sum(worker.capacity.values()) for worker in self._workers)
        bad = done - self._report.counts["ok"]
        cells = [
            Text(f"{done}/{total}" if total is not None else f"{done} done", style="bold"),
            Text(f"{in_flight}/{capacity} in flight", style="cyan"),
            Text(f"{self._records.per_s():.1f} records/s"),
            Text(f"{self._tokens.per_s():.0f} tokens/s", style="green"),
            Text(f"ETA {self._eta()}"),
        ]
        if bad:
            cells.append(Text(f"{bad} not ok", style="red"))
        return cells

    def _eta(self) -> str:
        done, passed = self._report.done, time.monotonic() - self._began
        if not done or self._total is None:
            return "–"
        return duration(passed / done * max(0, self._total - done))

    def _problems(self) -> list[str]:
        if not self._asked:
            return []
        if not self._workers:
            return [f"no worker of tier {self._job.spec.tier} has reported lately: items wait"]
        return [
            plain(f"endpoint {name}: {problem}: items wait", 160)
            for name, problem in {
                k: v for w in self._workers for k, v in w.problems.items()
            }.items()
        ]


def duration(seconds: float) -> str:
    """`1:02:03`, `2:03` or `0:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
