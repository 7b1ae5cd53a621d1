"""A run whose client is killed or interrupted goes on when the same command is given again."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import redis
from kit import FANOUT, environment, fanout, until
from stacks import Stack

COUNT = 200
EXTRACT = ("extract", "docs.jsonl", "--schema", "schema.json", "-o", "out.jsonl", "--window", "40")
SCHEMA = {
    "title": "Thing",
    "type": "object",
    "properties": {"word": {"type": "string"}},
    "required": ["word"],
}


@pytest.fixture
def folder(stack: Stack) -> Path:
    """The stack's own folder, with documents that take 50 ms each and no output."""
    (stack.folder / "schema.json").write_text(json.dumps(SCHEMA))
    for stale in stack.folder.glob("out.*"):
        stale.unlink()
    rows = [json.dumps({"id": f"d{n}", "text": f"SLOW document {n}"}) for n in range(COUNT)]
    rows[7] = "{broken"
    (stack.folder / "docs.jsonl").write_text("\n".join(rows) + "\n")
    return stack.folder


def interrupted(folder: Path, number: signal.Signals, *more: str) -> str:
    """Run the command until some records are written, then end it; what it said."""
    output = folder / "out.jsonl"
    process = subprocess.Popen(
        [FANOUT, *EXTRACT, *more],
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(
            lambda: output.exists() and output.read_bytes().count(b"\n") >= 40,
            "some records are written",
            process=process,
        )
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode != 0
    return said


def emptied(folder: Path) -> None:
    """Let Redis forget every job and every item, as one does that restarts without its data."""
    toml = (folder / ".fanout" / "stack.toml").read_text()
    with redis.Redis.from_url(toml.split('"')[1]) as client:
        jobs = [*client.scan_iter("fanout:job:*"), "fanout:jobs"]
        client.delete(*jobs, "fanout.default", "unacked", "unacked_index")


def check(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert sorted(record["ordinal"] for record in records) == list(range(COUNT))
    assert len({record["id"] for record in records}) == COUNT
    verified = fanout("verify", "out.jsonl", "--json", cwd=folder)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    found = json.loads(verified.stdout)
    assert (found["records"], found["compared_with"]) == (COUNT, "Redis")
    assert found["documents_compared"] == COUNT


def test_a_killed_client_loses_nothing_and_does_nothing_twice(stack: Stack, folder: Path) -> None:
    before = stack.asked()
    interrupted(folder, signal.SIGKILL)
    with (folder / "out.jsonl").open("ab") as output:
        output.write(b'{"id": "cut short by a cr')
    done = fanout(*EXTRACT, cwd=folder)
    assert done.returncode == 1, done.stderr  # one row cannot be read
    check(folder)
    assert stack.asked() - before == COUNT - 1
    again = fanout(*EXTRACT, cwd=folder)
    assert again.returncode == 1
    assert "out.jsonl is complete: job" in again.stderr
    assert stack.asked() - before == COUNT - 1


def test_a_redis_that_has_lost_everything_is_told_what_was_done(stack: Stack, folder: Path) -> None:
    interrupted(folder, signal.SIGKILL)
    emptied(folder)
    done = fanout(*EXTRACT, cwd=folder)
    assert done.returncode == 1, done.stderr
    check(folder)


def test_an_interruption_pauses_and_changed_work_is_refused(stack: Stack, folder: Path) -> None:
    before = stack.asked()
    said = interrupted(folder, signal.SIGINT)
    assert "is paused" in said
    assert "the same command goes on" in said
    written = (folder / "out.jsonl").read_bytes()
    rows = (folder / "docs.jsonl").read_text()
    (folder / "docs.jsonl").write_text(rows.replace("document 3", "document three"))
    refused = fanout(*EXTRACT, cwd=folder)
    assert refused.returncode == 2
    assert "the input has changed" in refused.stderr
    assert "--overwrite" in refused.stderr
    refused = fanout(*EXTRACT, "--prompt", "Do something else.", cwd=folder)
    assert refused.returncode == 2
    assert "the prompt differs" in refused.stderr
    assert (folder / "out.jsonl").read_bytes() == written
    (folder / "docs.jsonl").write_text(rows)
    done = fanout(*EXTRACT, cwd=folder)
    assert done.returncode == 1, done.stderr
    check(folder)
    assert stack.asked() - before == COUNT - 1


def test_failed_items_are_done_again_and_have_one_record(stack: Stack, folder: Path) -> None:
    (folder / "docs.jsonl").write_text(
        '{"text": "fine"}\n{"text": "REFUSED"}\n{"text": "BROKEN"}\n'
    )
    assert fanout(*EXTRACT, cwd=folder).returncode == 1
    before = stack.asked()
    job = json.loads((folder / "out.jsonl.job").read_text())["job"]
    done = fanout("retry", job, "--failed", "-o", "out.jsonl", cwd=folder)
    assert done.returncode == 1, done.stderr
    assert stack.asked() - before == 4  # one that is refused, and three tries of a broken one
    records = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert sorted(r["ordinal"] for r in records) == [0, 1, 2]
    verified = fanout("verify", "out.jsonl", cwd=folder)
    assert verified.returncode == 0, verified.stdout
    (folder / "out.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records[:2]))
    verified = fanout("verify", "out.jsonl", cwd=folder)
    assert verified.returncode == 3
    assert "missing" in verified.stdout
