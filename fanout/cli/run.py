"""What extract, review, agent and demo share: check, submit or go on, collect, report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from fanout.cli.console import note
from fanout.cli.going_on import begun
from fanout.cli.live import Live
from fanout.cli.stalling import watched
from fanout.cli.target import Target
from fanout.cli.work import Work
from fanout.client import Fanout, Job
from fanout.errors import Collected, JobError, Unavailable
from fanout.garbage import collect_seldom
from fanout.outputs import OutputClosed
from fanout.report import Report
from fanout.store import WorkerInfo
from fanout.wire import Record

#: Seconds that Redis may take to be told of an end.
_TOLD_S = 5.0

#: Records that come within this are written together, in seconds: a sync of the disk and a few
#: round trips to Redis for each handful would cost more than the records do.
_TOGETHER_S = 0.1
#: Records that are written at once.
_ENOUGH = 250
#: A smaller window would run empty meanwhile.
_WINDOW = 1024

#: Takes each batch of records and makes it durable before it returns.
Sink = Callable[[Sequence[Record]], None]


async def run(fo: Fanout, work: Work, sink: Sink) -> Report:
    """Submit, collect into `sink`, and say what it came to; an interruption cancels the job.

    Raises:
        UsageError: the work cannot be submitted as it is.
        Unavailable: Redis, all workers or all endpoints of the tier are away.
    """
    tier = fo.settings.tier_or_default(work.tier)
    await ready(fo, tier, work.kind)
    job = await fo.submit(
        work.kind,
        work.told_of_bad_rows(),
        tier=tier,
        window=work.window,
        results=work.results,
        **work.params,
    )
    report = Report()
    try:
        await _collect(fo, job, work, sink, report)
    except BaseException:
        # Whatever ends the collection, nobody will read what the workers would go on to do.
        await _told(job.cancel)
        if not work.quiet:
            note(
                f"job {job.id} is cancelled with {report.done} records written; "
                f"`fanout results {job.id}` has what was in flight"
            )
        raise
    return report


async def run_into(fo: Fanout, work: Work, target: Target) -> tuple[Report, bool]:
    """Begin a job, or go on with the target's, and collect into it; an interruption pauses it.

    Returns:
        What this run came to, and whether every record of the output is ok.

    Raises:
        UsageError: the work cannot be submitted as it is, or is not what the job does.
        Unavailable: Redis, all workers or all endpoints of the tier are away.
    """
    tier = fo.settings.tier_or_default(work.tier)
    await ready(fo, tier, work.kind)
    spec = fo.spec(work.kind, tier=tier, results=work.results, **work.params)
    job = await begun(fo, work, spec, target)
    report = Report()
    try:
        await fo.store.note_output(job.id, target.where)
        await _collect(fo, job, work, lambda batch: target.write(batch, job.checkpoint), report)
    except OutputClosed:
        await _told(job.cancel)  # who reads standard output has had enough
        raise
    except Collected:
        raise  # it is another's now, and goes on there
    except BaseException:
        is_told = await _told(job.pause)
        if not work.quiet:
            _say_paused(job, report, target, is_told=is_told)
        raise
    info = await job.info()
    target.complete(job.checkpoint, cancelled=info.state == "cancelled")
    return report, job.ledger.clean


def _say_paused(job: Job, report: Report, target: Target, *, is_told: bool) -> None:
    where = f"in {target.path}" if target.is_resumable else "written"
    how = "" if target.is_resumable else f" with --resume {job.id}"
    state = "is paused" if is_told else "could not be told to pause"
    note(
        f"job {job.id} {state} with {job.ledger.counts.total():,} records {where} "
        f"({report.done:,} of them by this run): the same command{how} goes on, "
        f"`fanout cancel {job.id}` ends it"
    )


async def _collect(fo: Fanout, job: Job, work: Work, sink: Sink, report: Report) -> None:
    before = job.ledger.counts.total()
    total = None if work.total is None else max(0, work.total - before)
    live = Live(fo.store, job, report, total=total, quiet=work.quiet, bar=work.bar)
    together_s = _TOGETHER_S if (work.window or fo.settings.window or _WINDOW) >= _WINDOW else 0
    collect_seldom()
    async with live, watched(fo, job, live, work.on_stall) as watch:
        async for batch in watch.batches():
            next_at = time.monotonic() + together_s
            await written(sink, batch)
            report.add(batch)
            live.refresh()
            if len(batch) < _ENOUGH:
                await asyncio.sleep(next_at - time.monotonic())


async def written(sink: Sink, batch: Sequence[Record]) -> None:
    """Hand a batch to `sink` in a thread, and return when it is durable."""
    # Writing waits for the disk; the feeder and the display go on meanwhile. An interruption waits
    # for it: the output must not be closed under the thread that writes it.
    writing = asyncio.ensure_future(asyncio.to_thread(sink, batch))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing])
        raise


async def ready(fo: Fanout, tier: str, kind: str) -> None:
    """Return when somebody can do the work.

    Raises:
        Unavailable: no worker serves the tier or knows the kind, no endpoint of it answers, or
            Redis would delete what is queued.
    """
    if policy := await fo.store.eviction():
        raise Unavailable(
            f"Redis at {fo.settings.redis_name} deletes queued items and records when it is full "
            f"(maxmemory-policy {policy}): `redis-cli config set maxmemory-policy noeviction`, and "
            "the same in its configuration"
        )
    workers = await fo.store.workers(tier)
    if not workers:
        raise Unavailable(
            f"no worker serves tier {tier!r}: start one with `fanout worker --tier {tier}`, "
            "or everything with `fanout up`"
        )
    if not any(kind in worker.kinds for worker in workers):
        raise Unavailable(f"no worker of tier {tier!r} knows the task kind {kind!r}")
    problems = {name: text for worker in workers for name, text in worker.problems.items()}
    if problems and not any(_has_one_that_answers(worker) for worker in workers):
        name, problem = next(iter(problems.items()))
        raise Unavailable(f"endpoint {name}: {problem}")


def _has_one_that_answers(worker: WorkerInfo) -> bool:
    # One whose circuit is half open is being tried: it has answered, and what comes of it cannot be
    # waited for here, since it may be an item of this very job that it is to be tried with.
    return any(
        name not in worker.problems or worker.circuits.get(name) == "half-open"
        for name in worker.capacity
    )


async def _told(call: Callable[[], Awaitable[None]]) -> bool:
    async def told() -> bool:
        # In here, because a second interruption leaves nobody outside to hear of it.
        try:
            async with asyncio.timeout(_TOLD_S):
                await call()
        # Redis is away: there is nothing to tell it.
        except (Unavailable, JobError, TimeoutError):
            return False
        return True

    return await asyncio.shield(told())
