"""`fanout demo`: the whole way on this machine, with a real model and nothing to set up."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import orjson
from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from fanout import aio
from fanout import demo as bundled
from fanout.cli.console import note, plain, stderr
from fanout.cli.exits import Exit
from fanout.cli.files import write_whole
from fanout.cli.run import run
from fanout.cli.stack import watch
from fanout.cli.summary import figures, summary
from fanout.cli.work import Work
from fanout.cli.writing import write
from fanout.client import connect
from fanout.errors import UsageError
from fanout.inputs import Document, count_hint, read_inputs
from fanout.local.services import Plan, Services, forget_stale, running
from fanout.outputs import open_output
from fanout.registry import load_kind
from fanout.report import Report
from fanout.settings import STACK_FILE, load_settings
from fanout.wire import Record

_EXAMPLES = 3
_PARAMS = {
    "schema": bundled.Passage,
    "prompt": bundled.prompt(),
    "show_schema": False,  # its examples show the form, and the model has little room to read
    "max_tokens": bundled.MAX_TOKENS,
}


def demo(
    *,
    output: Annotated[
        Path, Parameter(name=["--output", "-o"], help="Folder for records, report and logs.")
    ] = Path("fanout-demo"),
    limit: Annotated[int | None, Parameter(help="Only that many passages.")] = None,
    keep: Annotated[
        bool, Parameter(negative="", help="Leave everything running until Ctrl-C.")
    ] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")] = False,
) -> int:
    """Extract the characters of a novel's passages with a real model, start to finish.

    Starts Valkey, a 135M-parameter model with 16 slots, a worker and Flower on free ports of this
    machine, runs the job, shows what came, and stops everything again.
    """
    records = _isolate(output) / "characters.jsonl"
    forget_stale(STACK_FILE.parent)
    plan = Plan(home=STACK_FILE.parent, durable=False)
    with running(plan, load_settings(), lambda part: _say(f"starting {part}", quiet)) as services:
        _prime(services)
        _say(f"watch it in Flower: {services.flower_url}", quiet)
        report, examples = aio.run(_run(services, records, limit, quiet))
        write_whole(
            records.with_name("report.json"),
            orjson.dumps(figures(report), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE),
        )
        if not quiet:
            _show(report, examples)
            # As the user named the folder, not as this process finds it.
            note(f"records   {output / records.name}")
            note(f"report    {output / 'report.json'}")
        if keep:
            note(f"everything still runs, Flower at {services.flower_url}; Ctrl-C stops it")
            return watch(services)
    _say("all that was started is stopped again, Flower too; --keep leaves it running", quiet)
    return Exit.CLEAN if report.clean else Exit.NOT_OK


def _isolate(folder: Path) -> Path:
    """Leave the user's configuration behind: the demo is about the bundled model and nothing else.

    Its children find fanout.toml and the stack by the current folder, as all commands do.
    """
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
    except OSError as error:
        raise UsageError(f"cannot use the folder {folder}: {error.strerror}") from error
    for name in [name for name in os.environ if name.startswith("FANOUT_")]:
        del os.environ[name]
    return folder


def _prime(services: Services) -> None:
    """Let every slot of the embedded model know the constant prefix, computed once."""
    if services.model is None:
        return
    kind = load_kind("extract")
    task = kind(kind.Params.model_validate(_PARAMS))
    request = next(iter(task.requests(kind.Payload.model_validate({"text": ""}))))
    services.model.prime(request.messages[0]["content"])


async def _run(
    services: Services, output: Path, limit: int | None, quiet: bool
) -> tuple[Report, list[Record]]:
    examples: list[Record] = []
    passages = str(bundled.passages_path())
    documents = itertools.islice(read_inputs([passages]), limit)
    total = count_hint([passages])
    work = Work(
        kind="extract",
        docs=documents,
        params=_PARAMS,
        total=min(total, limit) if total and limit else total,
        quiet=quiet,
    )
    async with connect(settings=services.settings) as fo:
        with open_output(str(output), overwrite=True) as writer:

            def sink(batch: Sequence[Record]) -> None:
                write(writer, batch)
                examples.extend(record for record in batch if record.status == "ok")
                del examples[_EXAMPLES:]

            return await run(fo, work, sink), examples


def _show(report: Report, examples: Sequence[Record]) -> None:
    texts = {
        document.id: document.text
        for document in read_inputs([str(bundled.passages_path())])
        if isinstance(document, Document)
    }
    pairs = Table(show_lines=True, expand=True)
    pairs.add_column("passage", ratio=3)
    pairs.add_column("record", ratio=2)
    for record in examples:
        shown = json.dumps(record.data, ensure_ascii=False)
        pairs.add_row(
            Text.assemble((f"{plain(record.id)}\n", "dim"), plain(texts[record.id], lines=True)),
            Text(plain(shown, lines=True)),
        )
    stderr.print(pairs)
    stderr.print(summary(report))


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        note(line)
