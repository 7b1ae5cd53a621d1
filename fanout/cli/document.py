"""Outputs that are one document: their records are gathered beside them until they are whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fanout.cli.console import note
from fanout.cli.exits import Exit
from fanout.cli.files import check_free
from fanout.cli.run import run, run_into
from fanout.cli.target import Target, finished
from fanout.cli.work import Work
from fanout.client import Fanout
from fanout.client.jobfile import JobFile
from fanout.outputs.parquet import journal_of
from fanout.report import Report
from fanout.wire import Record


def said_finished(output: Path | None, inputs: Sequence[str], *, overwrite: bool) -> int | None:
    """The exit code of a command whose output is whole already, after saying so.

    Raises:
        UsageError: the output is there and is not this command's to go on with.
    """
    if output is None or overwrite:
        return None
    if (said := finished(str(output), inputs)) is not None:
        note(said[0])
        return Exit.CLEAN if said[1] else Exit.NOT_OK
    file = JobFile.load(str(output))
    if file is None or file.state != "open":
        # Its records went into the document: there is nothing to go on with.
        check_free(output, overwrite=False)
    return None


@contextmanager
def document_target(output: Path | None, *, overwrite: bool) -> Iterator[Target | None]:
    """Where the records of a document go until it is written; None where there is no output."""
    if output is None:
        yield None
        return
    target = Target(str(output), records=journal_of(str(output)), overwrite=overwrite)
    try:
        yield target
    finally:
        target.release()


async def run_for_document(
    fo: Fanout, work: Work, target: Target | None
) -> tuple[Report, bool, list[Record]]:
    """Run to the end; what this run came to, whether all is ok, and every record."""
    if target is None:
        records: list[Record] = []
        report = await run(fo, work, records.extend)
        return report, report.clean, records
    report, clean = await run_into(fo, work, target)
    return report, clean, list(target.all_records())
