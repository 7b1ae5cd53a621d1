"""`fanout retry`: items that gave no good record, once more."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated

from cyclopts import Parameter

from fanout.cli import options
from fanout.cli.extract import documents, extract_into
from fanout.cli.work import Work
from fanout.client.jobfile import JobFile
from fanout.errors import UsageError
from fanout.stall.action import OnStall

#: What is done again; a skipped row is as it is, and a cancelled job is final.
_FAILED = ("failed", "invalid")


def retry(
    job: Annotated[str, Parameter(help="The job's id.")],
    *,
    output: options.Output,
    failed: Annotated[
        bool, Parameter(negative="", help="Those that ended failed or invalid.")
    ] = False,
    window: options.Window = None,
    redis: options.Redis = None,
    on_stall: options.OnStall = "wait",
    quiet: options.Quiet = False,
) -> int:
    """Do the failed items of a job again; their records in the output are replaced.

    The input is read again, as the job file names it. The records are taken out of the output
    before anything is submitted, so it never holds two of one document; after an interruption the
    command that made the output, or this one, goes on.

    Example: fanout retry 20260422-153001-1f9c --failed -o out.jsonl
    """
    if not failed:
        raise UsageError("say what to do again: --failed")
    file = JobFile.load(output)
    if file is None:
        raise UsageError(f"there is no job file {output}.job: only its own output can be mended")
    if file.job != job:
        raise UsageError(f"{output} is the output of job {file.job}, not of {job}")
    if file.spec.kind != "extract" or not file.inputs:
        raise UsageError(f"job {job} is no extraction: give its command again with --overwrite")
    if file.state == "cancelled":
        raise UsageError(f"job {job} was cancelled, which is final: --overwrite begins anew")
    paths = [entry.path for entry in file.inputs]
    if file.folder != os.getcwd() and not all(map(os.path.isabs, paths)):
        raise UsageError(
            f"the input {paths[0]} is named from {file.folder}: give the command there"
        )
    opened = partial(documents, paths, file.reading)
    work = Work(
        kind=file.spec.kind,
        docs=opened() if "-" in paths else opened,
        params=file.spec.params,
        tier=file.spec.tier,
        total=file.documents or None,
        window=window,
        results=file.spec.results,
        quiet=quiet,
        bar=output != "-",
        on_stall=OnStall.read(on_stall),
        inputs=paths,
        reading=file.reading,
    )
    return extract_into(redis, work, output, drop=_FAILED)
