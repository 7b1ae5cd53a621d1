"""`fanout agent`: sub-tasks from a JSON list, fanned out and joined."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
from cyclopts import Parameter

from fanout import aio
from fanout.cli import options
from fanout.cli.console import stderr
from fanout.cli.document import document_target, run_for_document, said_finished
from fanout.cli.exits import Exit
from fanout.cli.files import write_whole
from fanout.cli.run import run
from fanout.cli.summary import figures, summary
from fanout.cli.target import Target
from fanout.cli.work import Work
from fanout.client import Fanout, connect
from fanout.errors import UsageError
from fanout.outputs.documents import lines_of
from fanout.report import Report
from fanout.schemas import load_schema
from fanout.stall.action import OnStall
from fanout.wire import Record


def agent(
    tasks: Annotated[
        Path, Parameter(help='JSON list of tasks: strings, or {"id", "task", "context"}.')
    ],
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="Output file; default: stdout.")
    ] = None,
    merge: Annotated[
        str | None,
        Parameter(help="Instruction for one last request that joins the answers; @FILE reads it."),
    ] = None,
    schema: Annotated[
        str | None, Parameter(help="Schema of each answer: module:Model or a JSON Schema file.")
    ] = None,
    prompt: options.Prompt = None,
    max_tokens: options.MaxTokens = None,
    reasoning_effort: options.ReasoningEffort = None,
    tier: options.Tier = None,
    redis: options.Redis = None,
    overwrite: options.Overwrite = False,
    accept_changes: options.AcceptChanges = False,
    on_stall: options.OnStall = "wait",
    quiet: options.Quiet = False,
) -> int:
    """Run sub-tasks at the same time and join their answers in the order of the tasks.

    Failures are values: a sub-task that gives no answer has its error in its place. With an output,
    a run that was interrupted or killed goes on when the same command is given again.

    Example: fanout agent tasks.json --merge "Write one summary of these answers." -o answers.json
    """
    listed = read_tasks(tasks)
    if (said := said_finished(output, [str(tasks)], overwrite=overwrite)) is not None:
        return said
    merging = options.prompt_text(merge)
    common = options.given(max_tokens=max_tokens, reasoning_effort=reasoning_effort)
    params = common | options.given(
        prompt=options.prompt_text(prompt), schema=load_schema(schema) if schema else None
    )
    work = Work(
        kind="agent",
        docs=lambda: listed,
        params=params,
        tier=tier,
        total=len(listed),
        quiet=quiet,
        on_stall=OnStall.read(on_stall),
        inputs=[str(tasks)],
        accept_changes=accept_changes,
    )
    with document_target(output, overwrite=overwrite) as target:
        joined, report, clean, records = aio.run(_agent(redis, work, merging, common, target))
        document = orjson.dumps(
            joined | {"report": figures(report), "records": lines_of(records)},
            option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
        )
        if output is not None and target is not None:
            target.put(lambda: write_whole(output, document))
        else:
            print(document.decode(), end="")  # noqa: T201 - the answers are this command's data
    if not quiet:
        stderr.print(summary(report))
    return Exit.CLEAN if clean else Exit.NOT_OK


async def _agent(
    redis: str | None,
    work: Work,
    merging: str | None,
    common: dict[str, Any],
    target: Target | None,
) -> tuple[dict[str, Any], Report, bool, list[Record]]:
    async with connect(redis) as fo:
        report, clean, found = await run_for_document(fo, work, target)
        records = {record.id: record for record in found}
        order = [doc["id"] for doc in work.opened() if isinstance(doc, dict)]
        outcomes = [_outcome(records[identity]) for identity in order]
        joined: dict[str, Any] = {"outcomes": outcomes}
        if merging is not None:
            merged, its_report = await _merged(fo, work, merging, common, outcomes)
            joined["merged"] = _outcome(merged)
            report.add([merged])
            clean = clean and its_report.clean
        return joined, report, clean, found


async def _merged(
    fo: Fanout, work: Work, merging: str, common: dict[str, Any], outcomes: list[dict[str, Any]]
) -> tuple[Record, Report]:
    answers = [outcome for outcome in outcomes if outcome["status"] == "ok"]
    context = "\n\n".join(f"{answer['id']}: {_text(answer['answer'])}" for answer in answers)
    last = Work(
        kind="agent",
        docs=[{"id": "merge", "task": merging, "context": context}],
        params=common,
        tier=work.tier,
        total=1,
        quiet=work.quiet,
        on_stall=work.on_stall,
    )
    records: list[Record] = []
    report = await run(fo, last, records.extend)
    return records[0], report


def _outcome(record: Record) -> dict[str, Any]:
    if record.error is None:
        return {"id": record.id, "status": record.status, "answer": record.data}
    error = record.error.model_dump(mode="json")
    return {"id": record.id, "status": record.status, "error": error}


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else orjson.dumps(answer).decode()


def read_tasks(path: Path) -> list[dict[str, Any]]:
    """The documents of a list of tasks.

    Raises:
        UsageError: there is none.
    """
    try:
        listed = orjson.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"{path} holds no list of tasks")
    tasks = [_task(path, number, entry) for number, entry in enumerate(listed)]
    ids = {task["id"] for task in tasks}
    if len(ids) != len(tasks):
        raise UsageError(f"{path}: two tasks have the same id")
    return tasks


def _task(path: Path, number: int, entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):
        entry = {"task": entry}
    if not (isinstance(entry, dict) and isinstance(entry.get("task"), str) and entry["task"]):
        raise UsageError(f"{path}: entry {number} is neither a task nor an object with one")
    return {**entry, "id": str(entry.get("id", number))}
