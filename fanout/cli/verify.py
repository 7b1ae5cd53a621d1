"""`fanout verify`: whether an output holds exactly one record for everything submitted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
from cyclopts import Parameter
from rich.table import Table

from fanout import aio
from fanout.cli import options
from fanout.cli.agent import read_tasks
from fanout.cli.console import note, plain, stdout
from fanout.cli.exits import Exit
from fanout.cli.extract import documents
from fanout.cli.review import source_files
from fanout.client import Doc, Ledger, connect
from fanout.client.audit import Audit
from fanout.client.jobfile import JobFile
from fanout.client.resumption import kept
from fanout.errors import JobError, Unavailable, UsageError
from fanout.inputs import InputError
from fanout.outputs.parquet import journal_of
from fanout.store import Checkpoint, Counts
from fanout.wire import STATUSES

#: How the input of each kind's command is read.
_INPUTS: dict[str, Callable[[Sequence[str], Mapping[str, Any]], Iterable[Doc]]] = {
    "extract": documents,
    "review": lambda paths, reading: source_files(map(Path, paths)),
    "agent": lambda paths, reading: read_tasks(Path(paths[0])),
}


def verify(
    *what: Annotated[
        str, Parameter(required=True, help="The output; before it the job's id, if you like.")
    ],
    input: Annotated[  # noqa: A002 - the option's name
        tuple[str, ...],
        Parameter(help="The input, to compare with; default: as in the job file.", negative=""),
    ] = (),
    redis: options.Redis = None,
    json: Annotated[bool, Parameter(negative="", help="Print JSON on stdout.")] = False,
) -> int:
    """Check that an output holds exactly one record for everything that was submitted.

    The counts are compared with Redis, or with the job file where Redis is away or has forgotten
    the job; the records' hashes with the input, where it can be read again. Exit code 3 when
    something is missing, twice or different.

    Example: fanout verify out.jsonl
    """
    if len(what) > 2:
        raise UsageError("verify takes an output, and before it a job's id at most")
    job, output = (what[0], what[1]) if len(what) == 2 else (None, what[0])
    file = JobFile.load(output)
    if file is None and job is None:
        raise UsageError(f"there is no job file {output}.job: name the job, `verify JOB {output}`")
    if file is not None and job not in (None, file.job):
        raise UsageError(f"{output} is the output of job {file.job}, not of {job}")
    if not os.path.exists(output) and not os.path.exists(journal_of(output)):
        raise UsageError(f"{output} does not exist")
    audit = Audit(output, _elsewhere(file), document=file is not None and file.document)
    audit.look()
    upto = aio.run(_judged(audit, redis, job or (file.job if file else ""), file))
    if (docs := _input(file, input)) is not None:
        aio.run(audit.compare(docs, upto))
    if json:
        print(orjson.dumps(_figures(audit)).decode())  # noqa: T201 - asked for
    else:
        stdout.print(_table(audit))
    return Exit.CLEAN if audit.holds else Exit.INCOMPLETE


async def _judged(audit: Audit, redis: str | None, job: str, file: JobFile | None) -> Checkpoint:
    """Compare with whoever knows the job; how far its input had been submitted.

    An output that was complete stays so: where Redis says that items are open all the same, it has
    been restarted without its last seconds.
    """
    try:
        async with connect(redis) as fo:
            info = await fo.store.get(job)
            async for batch in kept(fo.store, job):
                audit.kept(batch.records)
            if file is None or file.state != "complete" or not info.counts.open:
                audit.agree("Redis", _by_status(info.counts), info.counts.submitted)
                audit.waits(info.counts.open)
                return info.input
            note(f"Redis has forgotten the end of job {job}: compared with the job file")
    except (Unavailable, JobError) as error:
        if file is None:
            raise
        note(f"{error}: compared with the job file")
    audit.agree(
        "the job file",
        file.counts if file.state == "complete" else dict(audit.counts),
        file.documents,
    )
    if file.state == "open":
        audit.note("not complete", f"job {file.job} is open")
    return file.checkpoint


def _by_status(counts: Counts) -> dict[str, int]:
    return {status: getattr(counts, status) for status in STATUSES}


def _elsewhere(file: JobFile | None) -> Ledger | None:
    if file is None or file.elsewhere is None:
        return None
    ledger = Ledger(file.elsewhere.bitmap())
    ledger.counts.update(file.elsewhere.counts)
    return ledger


def _input(file: JobFile | None, named: tuple[str, ...]) -> Iterable[Doc] | None:
    reading = file.reading if file is not None else {}
    kind = file.spec.kind if file is not None else "extract"
    if kind not in _INPUTS:
        return None
    if named:
        return _INPUTS[kind](named, reading)
    if file is None or not file.inputs:
        return None
    paths = tuple(entry.path for entry in file.inputs)
    if file.accepted:
        note("the input was changed on the way, and is not compared")
        return None
    if "-" in paths or (file.folder != os.getcwd() and not all(map(os.path.isabs, paths))):
        note("the input cannot be read again from here, and is not compared: --input names it")
        return None
    try:
        return _INPUTS[kind](paths, reading)
    except (InputError, UsageError) as error:
        note(f"{error}: the input is not compared")
        return None


def _figures(audit: Audit) -> dict[str, Any]:
    return {
        "output": audit.output,
        "holds": audit.holds,
        "submitted": audit.submitted,
        "records": audit.records,
        "elsewhere": audit.elsewhere,
        "by_status": {status: audit.counts[status] for status in STATUSES},
        "compared_with": audit.judge,
        "documents_compared": audit.compared,
        "not_submitted": audit.unsubmitted,
        "troubles": {
            name: {"count": trouble.count, "first": trouble.first}
            for name, trouble in audit.troubles.items()
        },
    }


def _table(audit: Audit) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    counts = "   ".join(f"{audit.counts[s]:,} {s}" for s in STATUSES if audit.counts[s])
    table.add_row("submitted", f"{audit.submitted:,}   (by {audit.judge})")
    table.add_row("records", f"{audit.records:,}   {counts}")
    if audit.elsewhere:
        table.add_row("elsewhere", f"{audit.elsewhere:,} records were written to another output")
    compared = "not compared" if audit.compared is None else f"{audit.compared:,} documents"
    table.add_row("input", compared)
    for name, trouble in audit.troubles.items():
        more = ", …" if trouble.count > len(trouble.first) else ""
        places = f"   {plain(', '.join(trouble.first), 300)}{more}" if trouble.first else ""
        table.add_row(name, f"{trouble.count:,}{places}", style="red")
    if audit.unsubmitted:
        words = "after what was submitted: the job was cancelled, or the input has grown"
        table.add_row("not submitted", f"{audit.unsubmitted:,} documents {words}", style="yellow")
    if audit.holds:
        which = "every document that was submitted" if audit.unsubmitted else "every document"
        table.add_row("verified", f"{which} has exactly one record", style="green")
    return table
