"""`fanout status`, `results` and `cancel`: jobs that were submitted earlier, here or elsewhere."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Annotated

import orjson
from cyclopts import Parameter
from rich.table import Table

from fanout import aio
from fanout.cli import options
from fanout.cli.console import note, plain, stdout
from fanout.cli.exits import Exit
from fanout.cli.garbage import collect_seldom
from fanout.cli.writing import write
from fanout.client import connect
from fanout.outputs import RecordWriter, open_output
from fanout.store import Counts, JobInfo
from fanout.wire import STATUSES

JobId = Annotated[str, Parameter(help="The job's id.")]


def status(
    job: Annotated[str | None, Parameter(help="The job's id; default: the latest jobs.")] = None,
    *,
    redis: options.Redis = None,
    json: Annotated[bool, Parameter(negative="", help="Print JSON on stdout.")] = False,
) -> int:
    """Show jobs with their counts; they add up at every moment."""
    found, problems = aio.run(_status(redis, job))
    for name, problem in problems.items():
        note(f"endpoint {plain(name)}: {plain(problem, 160)}: items wait")
    if json:
        for info in found:
            shown = asdict(info) | {"done": info.done}
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
    return Exit.CLEAN


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
    """Write the records of a job as they come, until it is done.

    Records are forgotten by Redis once they are written.
    """
    with open_output(output, overwrite=overwrite) as writer:
        clean = aio.run(_results(redis, job, writer))
    return Exit.CLEAN if clean else Exit.NOT_OK


def cancel(job: JobId, *, redis: options.Redis = None) -> int:
    """End what has not started; what runs is left to finish."""
    cancelled = aio.run(_cancel(redis, job))
    note(f"job {job} is cancelled" if cancelled else f"job {job} was done already")
    return Exit.CLEAN


async def _status(redis: str | None, job: str | None) -> tuple[list[JobInfo], dict[str, str]]:
    async with connect(redis) as fo:
        ids = [job] if job else await fo.store.jobs()
        found = [await fo.store.get(identity) for identity in ids]
        workers = await fo.store.workers()
        return found, {name: text for worker in workers for name, text in worker.problems.items()}


async def _results(redis: str | None, job_id: str, writer: RecordWriter) -> bool:
    async with connect(redis) as fo:
        job = await fo.job(job_id)
        collect_seldom()
        clean = True
        async for batch in job.batches():
            await asyncio.to_thread(write, writer, batch)
            clean = clean and all(record.status == "ok" for record in batch)
        return clean


async def _cancel(redis: str | None, job_id: str) -> bool:
    async with connect(redis) as fo:
        job = await fo.job(job_id)
        if (await job.info()).done:
            return False
        await job.cancel()
        return True


def _dump(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump else str(value)
