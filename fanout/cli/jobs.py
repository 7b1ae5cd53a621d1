"""`fanout status` and `results`: jobs that were submitted earlier, here or elsewhere."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import orjson
from cyclopts import Parameter
from rich.table import Table

from fanout import aio
from fanout.cli import options
from fanout.cli.console import note, plain, stdout
from fanout.cli.exits import Exit
from fanout.cli.run import written
from fanout.cli.target import Target, check_target
from fanout.client import Fanout, connect
from fanout.client.claim import Claim
from fanout.client.jobfile import JobFile
from fanout.client.resumption import collected_of
from fanout.errors import UsageError
from fanout.garbage import collect_seldom
from fanout.store import Counts, JobInfo
from fanout.wire import STATUSES

#: Seconds between the two looks that give a rate.
_RATE_S = 1.0

JobId = Annotated[str, Parameter(help="The job's id.")]


def status(
    job: Annotated[str | None, Parameter(help="The job's id; default: the latest jobs.")] = None,
    *,
    redis: options.Redis = None,
    json: Annotated[bool, Parameter(negative="", help="Print JSON on stdout.")] = False,
) -> int:
    """Show jobs with their counts; they add up at every moment."""
    found, problems = aio.run(_status(redis, job))
    details = aio.run(_details(redis, job)) if job else {}
    for name, problem in problems.items():
        note(f"endpoint {plain(name)}: {plain(problem, 160)}: items wait")
    if json:
        for info in found:
            shown = asdict(info) | {"done": info.done} | details
            shown["counts"]["open"] = info.counts.open
            print(orjson.dumps(shown, default=_dump).decode())  # noqa: T201 - asked for
        return Exit.CLEAN
    table = Table(box=None, padding=(0, 2))
    table.add_column("job", no_wrap=True, min_width=max((len(i.id) for i in found), default=3))
    for heading in ("kind", "tier", "state", "age", "items"):
        table.add_column(heading, overflow="fold")
    for info in found:
        table.add_row(
            plain(info.id),
            plain(info.spec.kind),
            plain(info.spec.tier),
            "done" if info.done else info.state,
            f"{(time.time() - info.created_at) / 60:.0f} min",
            _items(info.counts),
        )
    stdout.print(table)
    if details:
        stdout.print(_detail_table(found[0], details))
    return Exit.CLEAN


def _detail_table(info: JobInfo, details: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    table.add_row("open", f"{info.counts.open:,}")
    table.add_row(
        "in the tier",
        f"{details['queued_in_tier']:,} queued   {details['in_flight_in_tier']:,} in flight",
    )
    if details["records_per_s"]:
        table.add_row("rate", f"{details['records_per_s']:.1f} records/s")
    table.add_row("unread", f"{details['unread']:,} records in Redis that nobody has written yet")
    table.add_row("output", plain(details["output"] or "–"))
    table.add_row("job file", plain(details["job_file"] or "–"))
    if info.state == "paused":
        table.add_row("paused", "the command that made it goes on with it")
    return table


def _items(counts: Counts) -> str:
    parts = {**asdict(counts), "open": counts.open}
    shown = [f"{parts[name]} {name}" for name in (*STATUSES, "open") if parts[name]]
    return f"{counts.submitted} = {' + '.join(shown)}" if shown else "0"


def results(
    job: JobId,
    *,
    output: options.Output = "-",
    redis: options.Redis = None,
    overwrite: options.Overwrite = False,
) -> int:
    """Write the records of a job as they come, until it is done or paused.

    Records are forgotten by Redis once they are written. Given again after an interruption, the
    command goes on with the output.
    """
    clean = aio.run(_results(redis, job, output, overwrite=overwrite))
    return Exit.CLEAN if clean else Exit.NOT_OK


async def _status(redis: str | None, job: str | None) -> tuple[list[JobInfo], dict[str, str]]:
    async with connect(redis) as fo:
        ids = [job] if job else await fo.store.jobs()
        found = [await fo.store.get(identity) for identity in ids]
        workers = await fo.store.workers()
        return found, {name: text for worker in workers for name, text in worker.problems.items()}


async def _details(redis: str | None, job: str) -> dict[str, Any]:
    """What else there is to say of one job; takes a second while it runs, for its rate."""
    async with connect(redis) as fo:
        before, began = await fo.store.get(job), time.monotonic()
        workers = await fo.store.workers(before.spec.tier)
        rate = 0.0
        if before.counts.open and before.state != "paused":
            await asyncio.sleep(_RATE_S)
            now = await fo.store.get(job)
            rate = (now.counts.settled - before.counts.settled) / (time.monotonic() - began)
        return {
            "queued_in_tier": await fo.store.queued(before.spec.tier),
            "in_flight_in_tier": sum(sum(worker.in_flight.values()) for worker in workers),
            "records_per_s": round(rate, 2),
            "unread": await fo.store.unread(job),
            "output": before.output,
            "job_file": _job_file(before.output),
        }


def _job_file(output: str | None) -> str | None:
    found = None if output in (None, "-") else f"{output}.job"
    return found if found is not None and os.path.exists(found) else None


async def _results(redis: str | None, job_id: str, output: str, *, overwrite: bool) -> bool:
    check_target(output, overwrite=overwrite)
    async with connect(redis) as fo:
        info = await fo.store.get(job_id)
        claim = Claim(fo.store, job_id)
        await claim.take()
        try:
            target = Target(output, overwrite=overwrite)
            try:
                return await _collected(fo, info, target, claim)
            finally:
                target.release()
        finally:
            await claim.let_go()


async def _collected(fo: Fanout, info: JobInfo, target: Target, claim: Claim) -> bool:
    await _adopt(fo, info, target)
    collect_seldom()
    job = await fo.job(info.id, ledger=target.ledger, claim=claim)
    async for batch in job.batches():
        upto = (await job.info()).input
        await written(partial(target.write, upto=upto), batch)
    info = await job.info()
    if info.done:
        target.complete(info.input, cancelled=info.state == "cancelled")
    return job.ledger.clean


async def _adopt(fo: Fanout, info: JobInfo, target: Target) -> None:
    """Make the output the job's, if it is not yet."""
    if target.file is not None and target.file.job != info.id:
        raise UsageError(f"{target.path} is the output of job {target.file.job}, not of {info.id}")
    if target.file is None and target.is_resumable:
        file = JobFile.new(info.id, info.spec, fo.settings, (), {})
        file.reached(info.input, {})
        target.continue_elsewhere(file, await collected_of(fo.store, info))


def _dump(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump else str(value)
