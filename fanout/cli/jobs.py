"""`fanout status`, `results` and `cancel`: jobs that were submitted earlier, here or elsewhere."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Annotated

import orjson
from cyclopts import Parameter
from rich.table import Table

from fanout.cli import options
from fanout.cli.console import note, plain, stderr
from fanout.cli.exits import Exit
from fanout.cli.writing import write
from fanout.client import connect
from fanout.outputs import RecordWriter, open_output
from fanout.store import JobInfo
from fanout.wire import STATUSES

JobId = Annotated[str, Parameter(help="The job's id.")]


def status(
    job: Annotated[str | None, Parameter(help="The job's id; default: the latest jobs.")] = None,
    *,
    redis: options.Redis = None,
    json: Annotated[bool, Parameter(negative="", help="Print JSON on stdout.")] = False,
) -> int:
    """Show jobs with their counts; they add up at every moment."""
    found = asyncio.run(_status(redis, job))
    if json:
        for info in found:
            print(orjson.dumps(asdict(info) | {"done": info.done}, default=_dump).decode())  # noqa: T201
        return Exit.CLEAN
    table = Table(box=None, padding=(0, 2))
    for heading in ("job", "kind", "tier", "state", "age", "submitted", *STATUSES, "open"):
        table.add_column(heading)
    for info in found:
        counts = asdict(info.counts)
        table.add_row(
            plain(info.id),
            plain(info.spec.kind),
            plain(info.spec.tier),
            "done" if info.done else info.state,
            f"{(time.time() - info.created_at) / 60:.0f} min",
            str(info.counts.submitted),
            *(str(counts[name]) for name in STATUSES),
            str(info.counts.open),
        )
    stderr.print(table)
    return Exit.CLEAN


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
        clean = asyncio.run(_results(redis, job, writer))
    return Exit.CLEAN if clean else Exit.NOT_OK


def cancel(job: JobId, *, redis: options.Redis = None) -> int:
    """End what has not started; what runs is left to finish."""
    asyncio.run(_cancel(redis, job))
    note(f"job {job} is cancelled")
    return Exit.CLEAN


async def _status(redis: str | None, job: str | None) -> list[JobInfo]:
    async with connect(redis) as fo:
        ids = [job] if job else await fo.store.jobs()
        return [await fo.store.get(identity) for identity in ids]


async def _results(redis: str | None, job_id: str, writer: RecordWriter) -> bool:
    async with connect(redis) as fo:
        job = await fo.job(job_id)
        clean = True
        async for batch in job.batches():
            await asyncio.to_thread(write, writer, batch)
            clean = clean and all(record.status == "ok" for record in batch)
        return clean


async def _cancel(redis: str | None, job_id: str) -> None:
    async with connect(redis) as fo:
        await (await fo.job(job_id)).cancel()


def _dump(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump else str(value)
