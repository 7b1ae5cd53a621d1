"""Outputs that are written as a whole: killed runs go on, and `verify` reads what comes of them."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from kit import FANOUT, environment, fanout, until
from stacks import Stack

COUNT = 60
SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}


def _sources(folder: Path) -> None:
    (folder / "modules").mkdir(exist_ok=True)
    for number in range(COUNT):
        (folder / "modules" / f"{number:02}.py").write_text(f"# SLOW {number}\n")


def _tasks(folder: Path) -> None:
    (folder / "tasks.json").write_text(json.dumps([f"SLOW {number}" for number in range(COUNT)]))


def _documents(folder: Path) -> None:
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    rows = (json.dumps({"id": str(n), "text": f"SLOW {n}"}) for n in range(COUNT))
    (folder / "docs.jsonl").write_text("\n".join(rows) + "\n")


@dataclass(frozen=True)
class Case:
    """A command, what it reads, and a way to change one of its documents."""

    command: tuple[str, ...]
    prepare: Callable[[Path], None]
    changed: str
    before: str
    after: str

    @property
    def output(self) -> str:
        return self.command[-1]


REVIEW = Case(
    ("review", "modules", "-o", "review.json"), _sources, "modules/07.py", "SLOW", "other"
)
AGENT = Case(("agent", "tasks.json", "-o", "answers"), _tasks, "tasks.json", "SLOW 7", "other")
EXTRACT = Case(
    ("extract", "docs.jsonl", "--schema", "schema.json", "-o", "out.parquet"),
    _documents,
    "docs.jsonl",
    "SLOW 7",
    "another",
)
CASES = pytest.mark.parametrize(
    "case", [REVIEW, AGENT, EXTRACT], ids=["review", "agent", "parquet"]
)


@pytest.fixture
def folder(stack: Stack) -> Path:
    for pattern in ("review.json*", "answers*", "out.parquet*"):
        for stale in stack.folder.glob(pattern):
            stale.unlink()
    return stack.folder


def once_each(stack: Stack, since: int, count: int) -> None:
    """The server was sent so many documents since then, each of them once."""
    sent = Counter(stack.documents(since))
    again = [document for document, times in sent.items() if times > 1]
    assert (again, sent.total()) == ([], count), f"{sent}\n{stack.log.read_text()[-4000:]}"


def killed(folder: Path, case: Case) -> None:
    """Run the command until some records are gathered, then SIGKILL it."""
    gathered = folder / f"{case.output}.partial.jsonl"
    process = subprocess.Popen(
        [FANOUT, *case.command],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(
            lambda: gathered.exists() and gathered.read_bytes().count(b"\n") >= 8,
            "some records are gathered",
            process=process,
        )
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (folder / case.output).exists()


def verified(folder: Path, output: str, code: int) -> dict[str, Any]:
    """What `verify` finds."""
    done = fanout("verify", output, "--json", cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@CASES
def test_a_killed_command_goes_on_and_is_verified(stack: Stack, folder: Path, case: Case) -> None:
    case.prepare(folder)
    before = stack.asked()
    killed(folder, case)
    assert "not complete" in verified(folder, case.output, 3)["troubles"]
    done = fanout(*case.command, cwd=folder)
    assert done.returncode == 0, done.stderr
    once_each(stack, before, COUNT)
    found = verified(folder, case.output, 0)
    assert (found["records"], found["documents_compared"]) == (COUNT, COUNT)
    assert not list(folder.glob("*.partial.jsonl"))
    changed = folder / case.changed
    changed.write_text(changed.read_text().replace(case.before, case.after, 1))
    assert "another document" in verified(folder, case.output, 3)["troubles"]


@pytest.mark.parametrize("case", [REVIEW, AGENT], ids=["review", "agent"])
def test_what_is_missing_twice_or_foreign_is_found(folder: Path, case: Case) -> None:
    case.prepare(folder)
    assert fanout(*case.command, cwd=folder).returncode == 0
    output = folder / case.output
    whole = json.loads(output.read_text())
    records = whole["records"]
    for changed, trouble in (
        (records[1:], "missing"),
        ([*records, records[3]], "twice"),
        ([{**records[0], "input_sha256": "1" * 64}, *records[1:]], "another document"),
        ([{**records[0], "status": "failed"}, *records[1:]], "other counts"),
        ([{**records[0], "status": "fine"}, *records[1:]], "unreadable"),
    ):
        output.write_text(json.dumps({**whole, "records": changed}))
        assert trouble in verified(folder, case.output, 3)["troubles"]
    output.write_text(json.dumps({"findings": []}))
    assert "unreadable" in verified(folder, case.output, 3)["troubles"]


def test_failed_items_of_a_parquet_output_are_done_again(stack: Stack, folder: Path) -> None:
    _documents(folder)
    (folder / "docs.jsonl").write_text('{"text": "fine"}\n{"text": "REFUSED"}\n{"text": "good"}\n')
    assert fanout(*EXTRACT.command, cwd=folder).returncode == 1
    before = stack.asked()
    job = json.loads((folder / "out.parquet.job").read_text())["job"]
    done = fanout("retry", job, "--failed", "-o", "out.parquet", cwd=folder)
    assert done.returncode == 1, done.stderr
    once_each(stack, before, 1)
    table = pyarrow.parquet.read_table(folder / "out.parquet")
    assert sorted(table.column("ordinal").to_pylist()) == [0, 1, 2]
    assert verified(folder, "out.parquet", 0)["by_status"]["failed"] == 1
