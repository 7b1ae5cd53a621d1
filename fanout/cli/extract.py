"""`fanout extract`: documents to JSON records that follow a schema."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from cyclopts import Parameter

from fanout import aio
from fanout.cli import options
from fanout.cli.console import note, stderr
from fanout.cli.exits import Exit
from fanout.cli.run import ready, run_into
from fanout.cli.summary import summary
from fanout.cli.target import Target, check_target, finished
from fanout.cli.work import Work
from fanout.client import Doc, connect
from fanout.errors import UsageError
from fanout.inputs import count_hint, read_inputs
from fanout.report import Report
from fanout.schemas import load_schema
from fanout.stall.action import OnStall


def extract(
    *inputs: Annotated[
        str,
        Parameter(
            required=True,
            allow_leading_hyphen=True,
            help="JSONL, CSV, Parquet, .txt or .md, a folder, a quoted glob, or - for stdin.",
        ),
    ],
    schema: Annotated[
        str, Parameter(help="module:Model or file.py:Model (pydantic), or a JSON Schema file.")
    ],
    output: options.Output,
    prompt: options.Prompt = None,
    show_schema: Annotated[
        bool | None, Parameter(help="Put the schema behind the prompt; default: yes.")
    ] = None,
    text_field: Annotated[
        str | None, Parameter(help="Field that holds the document; default: text, content, …")
    ] = None,
    id_field: Annotated[
        str | None, Parameter(help="Field that holds the id; default: id, else file and line.")
    ] = None,
    field: Annotated[
        tuple[str, ...],
        Parameter(help="Another field that travels in the prompt; may be repeated.", negative=""),
    ] = (),
    include: Annotated[
        tuple[str, ...], Parameter(help="In folders: only files that match.", negative="")
    ] = (),
    exclude: Annotated[
        tuple[str, ...], Parameter(help="In folders: no files that match.", negative="")
    ] = (),
    max_tokens: options.MaxTokens = None,
    temperature: Annotated[float | None, Parameter(help="Default: 0.")] = None,
    reasoning_effort: options.ReasoningEffort = None,
    tier: options.Tier = None,
    redis: options.Redis = None,
    window: options.Window = None,
    results: options.Results = False,
    overwrite: options.Overwrite = False,
    resume: options.Resume = None,
    accept_changes: options.AcceptChanges = False,
    on_stall: options.OnStall = "wait",
    quiet: options.Quiet = False,
) -> int:
    """Extract JSON records from documents.

    Every document gives exactly one record; rows that cannot be read become `skipped` records.
    A run that was interrupted or killed goes on when the same command is given again.

    Example: fanout extract postings.jsonl --schema schema.json -o out.jsonl
    """
    _check_apart(inputs, output)
    if not overwrite and (said := finished(output, inputs)) is not None:
        note(said[0])
        return Exit.CLEAN if said[1] else Exit.NOT_OK
    reading = {
        "text_field": text_field,
        "id_field": id_field,
        "include": list(include),
        "exclude": list(exclude),
    }
    first = iter(documents(inputs, reading))  # now: what cannot be read is said before all else
    work = Work(
        kind="extract",
        docs=first if "-" in inputs else partial(documents, inputs, reading),
        params=options.given(
            schema=load_schema(schema),
            prompt=options.prompt_text(prompt),
            show_schema=show_schema,
            max_tokens=max_tokens,
            temperature=temperature,
            reasoning_effort=reasoning_effort,
            fields=field or None,
        ),
        tier=tier,
        total=count_hint(inputs),
        window=window,
        results=results,
        quiet=quiet,
        on_stall=OnStall.read(on_stall),
        bar=output != "-",
        inputs=inputs,
        reading=reading,
        resume=resume,
        accept_changes=accept_changes,
    )
    return extract_into(redis, work, output, overwrite=overwrite)


def documents(inputs: Sequence[str], reading: Mapping[str, Any]) -> Iterable[Doc]:
    """The documents of the inputs, read from the first.

    Args:
        inputs: paths.
        reading: options of `fanout.inputs.read_inputs`.
    """
    return read_inputs(inputs, **reading)


def extract_into(
    redis: str | None,
    work: Work,
    output: str,
    *,
    overwrite: bool = False,
    drop: Collection[str] = (),
) -> int:
    """Work into an output to its end, and show the report; the command's exit code.

    Args:
        redis: URL; None = the configuration's.
        work: what to do.
        output: path, or `-`.
        overwrite: replace what is there.
        drop: statuses whose records are done again.
    """
    report, clean = aio.run(_extract(redis, work, output, overwrite=overwrite, drop=drop))
    if not work.quiet:
        stderr.print(summary(report))
    return Exit.CLEAN if clean else Exit.NOT_OK


def _check_apart(inputs: Sequence[str], output: str) -> None:
    # Inputs are read while the output is written: one file as both would empty the input.
    for path in inputs:
        if os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output):
            raise UsageError(f"{output} is an input: it cannot be the output as well")


async def _extract(
    redis: str | None, work: Work, output: str, *, overwrite: bool, drop: Collection[str]
) -> tuple[Report, bool]:
    check_target(output, overwrite=overwrite)
    async with connect(redis) as fo:
        # Only then: a file that holds nothing would be in the way of the next try.
        await ready(fo, fo.settings.tier_or_default(work.tier), work.kind)
        target = Target(output, overwrite=overwrite, drop=drop)
        try:
            return await run_into(fo, work, target)
        finally:
            target.release()
