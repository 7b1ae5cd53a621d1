"""Watches that records come, and says why when none does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fanout.aio import ended
from fanout.durations import duration
from fanout.errors import Stalled
from fanout.report import Latencies
from fanout.settings import Settings
from fanout.stall.look import Looker
from fanout.stall.sight import Cause, Sight, diagnose
from fanout.timeouts import Timeout, needed
from fanout.wire import JobSpec, Record

if TYPE_CHECKING:
    from fanout.client import Fanout, Job

#: Seconds between two checks of the clock, which cost nothing else.
_TICK_S = 1.0
#: A cause is looked for after this part of the silence that is nothing special, and again after
#: each further part: two looks tell what moves.
_LOOK_AT = 0.5
_LOOK_EVERY = 0.2
#: Silence counts as a stall after so many times the time that nearly all items took.
_TIMES = 4.0
#: Items that have to have ended before their times count.
_ENOUGH = 3
_DEFAULT_MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Stall:
    """A silence, as it is told of.

    Attributes:
        job: the job's id.
        seconds: since the last record, or since there have been items open.
        open: items without a record.
        cause: the likeliest one.
        expected: in words, how long a record may take.
        told: how often this stall has been told of, this time included.
    """

    job: str
    seconds: float
    open: int
    cause: Cause
    expected: str
    told: int = 1

    def words(self) -> str:
        """All of it in one sentence."""
        items = f"{self.open} item{'s' if self.open != 1 else ''}"
        return (
            f"no record for {duration(self.seconds)} with {items} open ({self.expected}): "
            f"{self.cause.words}"
        )


#: Told of a stall, once when it begins and again at growing intervals.
OnStall = Callable[[Stall], Awaitable[None] | None]


class StallWatch:
    """Says when a job gives no records although items are open.

        async with StallWatch(fo, job, on_stall=lambda stall: print(stall.words())) as watch:
            async for batch in watch.batches():
                ...

    A silence is a stall after 30 s where its cause leaves nothing to wait for (no worker, no
    endpoint that answers, N = 0, Redis away, an output that takes nothing), else after four times
    what 95 % of the items took, waits included; before the first record, after what one request
    may take (the derived timeout).

    Args:
        fo: the client.
        job: a job of it.
        on_stall: told when a stall begins, when its cause becomes another one, and after each
            doubling of its length.
        on_end: told of the seconds of silence when records come again.
        stop: end the block with `Stalled` when a stall begins.
    """

    def __init__(
        self,
        fo: Fanout,
        job: Job,
        *,
        on_stall: OnStall | None = None,
        on_end: Callable[[float], None] | None = None,
        stop: bool = False,
    ) -> None:
        self._job = job
        self._on_stall = on_stall
        self._on_end = on_end
        self._stop = stop
        self._least_s = fo.settings.stall_after_s
        self._patience = fo.patience
        self._looker = Looker(fo.impatient, fo.settings, job.id, job.spec)
        self._first = first_reply(fo.settings, job.spec)
        self._latency = Latencies()
        self._moved_at = time.monotonic()
        self._taken_at: float | None = None
        self._taken = 0
        self._looked_at = 0.0
        self._tell_at = 0.0
        self._told_at = 0.0
        self._told_where = ""
        self._stopped = False
        self._watcher: asyncio.Task[None] | None = None
        self._owner: asyncio.Task[object] | None = None
        #: The stall that lasts; None while records come.
        self.stall: Stall | None = None

    async def __aenter__(self) -> Self:
        self._owner = asyncio.current_task()
        self._moved_at = time.monotonic()
        self._watcher = asyncio.create_task(self._watch(), name="stall watch")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watcher is not None:
            await ended(self._watcher)
        if self._stopped and self._owner is not None and self.stall is not None:
            self._owner.uncancel()
            raise Stalled(self.stall.words()) from error

    async def batches(self, limit: int = 500) -> AsyncGenerator[Sequence[Record], None]:
        """The job's batches, watched: see `Job.batches`."""
        async with aclosing(self._job.batches(limit)) as batches:
            async for batch in batches:
                self._note(batch)
                self._taken, self._taken_at = len(batch), time.monotonic()
                try:
                    yield batch
                finally:
                    self._taken_at = None

    def expected(self) -> tuple[float, str]:
        """(seconds of silence that slow work may explain, the same in words)."""
        nearly_all = self._latency.percentile(95)
        if nearly_all is None or self._latency.count < _ENOUGH:
            return max(self._least_s, self._first.seconds), (
                f"the first may take {self._first.seconds:.0f} s: {self._first.arithmetic()}"
            )
        return max(
            self._least_s, _TIMES * nearly_all
        ), f"95 % have taken up to {nearly_all:.1f} s each"

    def _note(self, batch: Sequence[Record]) -> None:
        now = time.monotonic()
        for record in batch:
            if record.attempts and record.timing.total_s is not None:
                self._latency.add(record.timing.total_s)
        self._moves(now)

    async def _watch(self) -> None:
        await self._looker.note_workers()
        while not self._stopped:
            await asyncio.sleep(_TICK_S)
            await self.look(time.monotonic())

    async def look(self, now: float) -> None:
        """Look at the clock, and for a cause where it is time to; tell of a stall.

        Args:
            now: `time.monotonic()`.
        """
        known = len(self._job.outstanding)
        if not known and self._job.checkpoint.count:
            self._moves(now)  # all that was submitted has been collected: the input is slow
            return
        moved_at, quiet_s = self._moved_at, now - self._moved_at
        if quiet_s < _LOOK_AT * self._least_s:
            return
        if now < self._looked_at + _LOOK_EVERY * self._least_s:
            return
        self._looked_at = now
        sight = await self._sight(now, quiet_s)
        if moved_at != self._moved_at:
            return  # a record has come meanwhile
        known = max(known, sight.open)
        if not known:
            self._moves(now)
            return
        await self._judge(now, quiet_s, known, diagnose(sight))

    async def _sight(self, now: float, quiet_s: float) -> Sight:
        sight = Sight(
            tier=self._job.spec.tier,
            kind=self._job.spec.kind,
            quiet_s=quiet_s,
            least_s=self._least_s,
            output_s=0.0 if self._taken_at is None else now - self._taken_at,
            output_records=self._taken,
            redis=self._patience.words(),
        )
        return sight if sight.redis else await self._looker.look(sight)

    async def _judge(self, now: float, quiet_s: float, known: int, cause: Cause) -> None:
        allowed_s, expected = self.expected()
        if quiet_s < (self._least_s if cause.certain else allowed_s):
            return
        told = self.stall.told if self.stall else 0
        is_new = cause.where != self._told_where and now >= self._told_at + self._least_s
        is_due = is_new or now >= self._tell_at
        self.stall = Stall(self._job.id, quiet_s, known, cause, expected, told + is_due)
        if not is_due:
            return
        self._told_at, self._told_where, self._tell_at = now, cause.where, now + quiet_s
        if self._on_stall is not None:
            answer = self._on_stall(self.stall)
            if answer is not None:
                await answer
        if self._stop and self._owner is not None:
            self._stopped = True
            self._owner.cancel()

    def _moves(self, now: float) -> None:
        if self.stall is not None:
            self.stall = None
            if self._on_end is not None:
                self._on_end(now - self._moved_at)
        self._moved_at = now
        self._tell_at = 0.0


def first_reply(settings: Settings, spec: JobSpec) -> Timeout:
    """How long the first reply of a job may take, at the endpoint that may take longest."""
    wanted = spec.params.get("max_tokens")
    max_tokens = wanted if isinstance(wanted, int) and wanted > 0 else _DEFAULT_MAX_TOKENS
    endpoints = settings.endpoints_of(spec.tier)
    slowest = min(endpoint.min_tokens_per_s for endpoint in endpoints)
    seconds = max(
        endpoint.timeout_s or needed(max_tokens, endpoint.min_tokens_per_s)
        for endpoint in endpoints
    )
    return Timeout(max_tokens, slowest, seconds)
