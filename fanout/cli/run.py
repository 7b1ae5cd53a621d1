"""What extract, review, agent and demo share: check, submit, collect, report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fanout.cli.console import note, plain
from fanout.cli.garbage import collect_seldom
from fanout.cli.live import Live
from fanout.client import Doc, Fanout, Job
from fanout.errors import Unavailable
from fanout.inputs import BadRow
from fanout.report import Report
from fanout.wire import Record

#: Rows that could not be read are named one by one up to here; all are in the output.
_NAMED_ROWS = 20

#: Records that come within this are written together, in seconds: a sync of the disk and a few
#: round trips to Redis for each handful would cost more than the records do.
_TOGETHER_S = 0.1
#: Records that are written at once.
_ENOUGH = 250
#: A smaller window would run empty meanwhile.
_WINDOW = 1024

#: Takes each batch of records and makes it durable before it returns.
Sink = Callable[[Sequence[Record]], None]


@dataclass(frozen=True, slots=True)
class Work:
    """One job as a command starts it.

    Attributes:
        kind: name of the task kind.
        docs: what to work on.
        params: the task kind's parameters.
        tier: the tier that serves it; None = the only one.
        total: number of documents, if it is cheap to know.
        window: items submitted ahead; None = by the tier's N.
        results: also keep records in Celery's result backend.
        quiet: show no progress.
        bar: show a moving bar; not beside data that goes to the same terminal.
    """

    kind: str
    docs: Iterable[Doc]
    params: dict[str, Any]
    tier: str | None = None
    total: int | None = None
    window: int | None = None
    results: bool = False
    quiet: bool = False
    bar: bool = True


async def run(fo: Fanout, work: Work, sink: Sink) -> Report:
    """Submit, collect into `sink`, and say what it came to.

    Raises:
        UsageError: the work cannot be submitted as it is.
        Unavailable: Redis, all workers or all endpoints of the tier are away.
    """
    tier = fo.settings.tier_or_default(work.tier)
    await ready(fo, tier, work.kind)
    collect_seldom()
    job = await fo.submit(
        work.kind,
        _telling_bad_rows(work.docs, work.quiet),
        tier=tier,
        window=work.window,
        results=work.results,
        **work.params,
    )
    report = Report()
    live = Live(fo.store, job, report, total=work.total, quiet=work.quiet, bar=work.bar)
    try:
        async with live:
            together_s = (
                _TOGETHER_S if (work.window or fo.settings.window or _WINDOW) >= _WINDOW else 0
            )
            async for batch in job.batches():
                next_at = time.monotonic() + together_s
                # Writing waits for the disk; the feeder and the display go on meanwhile.
                await asyncio.to_thread(sink, batch)
                report.add(batch)
                live.refresh()
                if len(batch) < _ENOUGH:
                    await asyncio.sleep(next_at - time.monotonic())
    except BaseException:
        # Whatever ends the collection, nobody will read what the workers would go on to do.
        await _cancel(job)
        if not work.quiet:
            note(
                f"job {job.id} is cancelled with {report.done} records written; "
                f"`fanout results {job.id}` has what was in flight"
            )
        raise
    return report


async def ready(fo: Fanout, tier: str, kind: str) -> None:
    """Return when somebody can do the work.

    Raises:
        Unavailable: no worker serves the tier or knows the kind, or no endpoint of it answers.
    """
    workers = await fo.store.workers(tier)
    if not workers:
        raise Unavailable(
            f"no worker serves tier {tier!r}: start one with `fanout worker --tier {tier}`, "
            "or everything with `fanout up`"
        )
    if not any(kind in worker.kinds for worker in workers):
        raise Unavailable(f"no worker of tier {tier!r} knows the task kind {kind!r}")
    problems: dict[str, str] = {}
    endpoints: set[str] = set()
    for worker in workers:
        endpoints |= worker.capacity.keys()
        problems |= worker.problems
    if endpoints and endpoints == problems.keys():
        name, problem = next(iter(problems.items()))
        raise Unavailable(f"endpoint {name}: {problem}")


def _telling_bad_rows(docs: Iterable[Doc], quiet: bool) -> Iterable[Doc]:
    bad = 0
    for doc in docs:
        if isinstance(doc, BadRow) and not quiet:
            bad += 1
            if bad <= _NAMED_ROWS:
                note(f"skipped {plain(doc.source)}: {plain(doc.reason, 200)}")
            elif bad == _NAMED_ROWS + 1:
                note("more skipped rows follow; all of them are in the output")
        yield doc


async def _cancel(job: Job) -> None:
    async def told() -> None:
        # In here, because a second interruption leaves nobody outside to hear of it.
        with suppress(Unavailable):  # Redis is away: there is nothing to tell it
            await job.cancel()

    await asyncio.shield(told())
