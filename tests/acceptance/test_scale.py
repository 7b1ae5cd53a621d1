"""Flat memory and whole outputs, by benchmarks/scale at small size, and a disk that is full."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

from kit import FANOUT, environment
from stacks import Stack

from fanout.cli.exits import Exit

ITEMS = 2000
WINDOW = 200
#: Bytes of a document of 2 KB in the queue, its record, and what Redis adds.
ITEM_BYTES = 8000


def test_redis_holds_a_window_however_long_the_input() -> None:
    benchmark = Path(__file__).parents[2] / "benchmarks" / "scale"
    sizes = ["--views", "client", "--sizes", str(ITEMS), "--window", str(WINDOW), "--rate", "1000"]
    done = subprocess.run(
        [sys.executable, "-P", str(benchmark), *sizes],
        env=environment(),
        text=True,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["client"][str(ITEMS)]
    assert figures["written_once"]
    held_mb = figures["peak_mb"]["redis_used"] - figures["redis_empty_mb"]
    # All documents would be ten times as much; half a megabyte is connections.
    assert held_mb < WINDOW * ITEM_BYTES / 2**20 + 2


def test_a_file_that_may_not_grow_ends_the_command_with_whole_records(stack: Stack) -> None:
    folder = stack.folder
    (folder / "schema.json").write_text('{"type": "object", "properties": {"word": {}}}')
    rows = [json.dumps({"id": f"d{n}", "text": f"document {n}"}) for n in range(300)]
    (folder / "docs.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "full.jsonl").unlink(missing_ok=True)
    command = shlex.join(
        [FANOUT, "extract", "docs.jsonl", "--schema", "schema.json", "-o", "full.jsonl"]
    )
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 64; exec {command} --window 20"],  # of 1,024 bytes
        cwd=folder,
        env=environment(),
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == Exit.INCOMPLETE, done.stderr
    assert "full.jsonl cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    written = (folder / "full.jsonl").read_bytes()
    assert written.endswith(b"}\n")
    ids = [json.loads(line)["id"] for line in written.splitlines()]
    assert 0 < len(set(ids)) == len(ids) < 300
