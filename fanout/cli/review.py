"""`fanout review`: one request a source file, findings as text and JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from cyclopts import Parameter

from fanout import aio
from fanout.cli import options
from fanout.cli.console import plain, stderr
from fanout.cli.document import document_target, run_for_document, said_finished
from fanout.cli.exits import Exit
from fanout.cli.files import write_whole
from fanout.cli.summary import figures, summary
from fanout.cli.target import Target
from fanout.cli.work import Work
from fanout.client import Doc, connect
from fanout.errors import UsageError
from fanout.inputs import BadRow, leads_out
from fanout.outputs.documents import lines_of
from fanout.report import Report
from fanout.stall.action import OnStall
from fanout.wire import Record

Severity = Literal["error", "warning", "note"]
_RANK: dict[str, int] = {"note": 1, "warning": 2, "error": 3}

SOURCES = [
    "*.py",
    "*.pyi",
    "*.js",
    "*.jsx",
    "*.ts",
    "*.tsx",
    "*.go",
    "*.rs",
    "*.java",
    "*.kt",
    "*.scala",
    "*.c",
    "*.h",
    "*.cc",
    "*.cpp",
    "*.hpp",
    "*.cs",
    "*.rb",
    "*.php",
    "*.swift",
    "*.m",
    "*.sh",
    "*.sql",
    "*.lua",
    "*.pl",
    "*.ex",
    "*.exs",
    "*.erl",
    "*.hs",
    "*.ml",
    "*.r",
    "*.R",
]
#: A longer file does not fit a prompt; it is reported as skipped.
_MAX_BYTES = 200_000
_PASSED_OVER = frozenset({"node_modules", "__pycache__", "vendor", "dist", "build"})


def review(
    *paths: Annotated[str, Parameter(required=True, help="Files or folders to review.")],
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="File for the findings as JSON.")
    ] = None,
    include: Annotated[
        tuple[str, ...],
        Parameter(help="Only files whose name matches; default: source files.", negative=""),
    ] = (),
    exclude: Annotated[
        tuple[str, ...], Parameter(help="No files whose path matches.", negative="")
    ] = (),
    fail_on: Annotated[
        Severity | None, Parameter(help="Exit with 1 if a finding is this severe or more.")
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
    """Review source files, one request a file; findings go to stdout as path:line: severity: text.

    With an output, a run that was interrupted or killed goes on when the same command is given
    again.

    Example: fanout review src/ -o findings.json --fail-on error
    """
    files = sorted(set(_files(paths, include or SOURCES, exclude)))
    if not files:
        raise UsageError(f"nothing to review in {', '.join(paths)}")
    inputs = [path.as_posix() for path in files]
    if (said := said_finished(output, inputs, overwrite=overwrite)) is not None:
        return said
    work = Work(
        kind="review",
        docs=lambda: source_files(files),
        params=options.given(
            prompt=options.prompt_text(prompt),
            max_tokens=max_tokens,
            reasoning_effort=reasoning_effort,
        ),
        tier=tier,
        total=len(files),
        quiet=quiet,
        on_stall=OnStall.read(on_stall),
        inputs=inputs,
        accept_changes=accept_changes,
    )
    with document_target(output, overwrite=overwrite) as target:
        report, clean, records = aio.run(_review(redis, work, target))
        findings = _findings(records)
        if output is not None and target is not None:
            document = _json(findings, records, report)
            target.put(lambda: write_whole(output, document))
    for finding in findings:
        print(_line(finding))  # noqa: T201 - the findings are this command's data
    if not quiet:
        stderr.print(summary(report))
    if not clean:
        return Exit.NOT_OK
    worst = max((_RANK[finding["severity"]] for finding in findings), default=0)
    return Exit.NOT_OK if fail_on and worst >= _RANK[fail_on] else Exit.CLEAN


async def _review(
    redis: str | None, work: Work, target: Target | None
) -> tuple[Report, bool, list[Record]]:
    async with connect(redis) as fo:
        return await run_for_document(fo, work, target)


def _files(paths: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> Iterator[Path]:
    for named in paths:
        path = Path(named)
        if path.is_file():
            yield path
        elif path.is_dir():
            root = os.path.realpath(path)
            for found in path.rglob("*"):
                inside = found.relative_to(path)
                if (
                    found.is_file()
                    and any(fnmatch(found.name, pattern) for pattern in include)
                    and not any(fnmatch(str(inside), pattern) for pattern in exclude)
                    and not any(p.startswith(".") or p in _PASSED_OVER for p in inside.parts)
                    # A tree from elsewhere must not send this machine's other files to a model.
                    and not leads_out(str(found), root)
                ):
                    yield found
        else:
            raise UsageError(f"there is no file or folder {named}")


def source_files(files: Iterable[Path]) -> Iterator[Doc]:
    """The documents of some files, in their order."""
    for path in files:
        name = path.as_posix()
        try:
            raw = path.read_bytes()
            text = raw.decode("utf-8")
        except OSError as error:
            reason = error.strerror or str(error)
        except UnicodeDecodeError:
            reason = "it is not UTF-8"
        else:
            if len(raw) <= _MAX_BYTES:
                yield {"id": name, "path": name, "text": text}
                continue
            reason = f"it has {len(raw)} bytes, more than {_MAX_BYTES}"
        yield BadRow(id=name, source=name, line=None, reason=reason, raw="")


def _findings(records: Iterable[Record]) -> list[dict[str, Any]]:
    found = [
        {"path": record.data["path"], **finding}
        for record in records
        if record.status == "ok"
        for finding in record.data["findings"]
    ]
    return sorted(found, key=lambda finding: (finding["path"], finding["line"]))


def _line(finding: dict[str, Any]) -> str:
    place = f"{finding['path']}:{finding['line']}"
    # One finding, one line, whatever the model wrote.
    words = " ".join(f"{finding['title']}: {finding['detail']}".split())
    return plain(f"{place}: {finding['severity']}: {words}")


def _json(findings: list[dict[str, Any]], records: list[Record], report: Report) -> bytes:
    missing = [
        {"path": record.id, "status": record.status, "error": record.error.model_dump(mode="json")}
        for record in records
        if record.error
    ]
    document = {
        "findings": findings,
        "not_reviewed": missing,
        "report": figures(report),
        "records": lines_of(records),
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
