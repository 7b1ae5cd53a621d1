"""`fanout extract`, `review` and `agent` through Redis, Celery and a model server."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from kit import FANOUT, alive_in, closed_port, environment, fanout, started, until
from model_server import MODEL
from stacks import Stack

SCHEMA = {
    "title": "Thing",
    "type": "object",
    "properties": {"word": {"type": "string"}, "count": {"type": "integer", "minimum": 3}},
    "required": ["word", "count"],
    "additionalProperties": False,
}


@pytest.fixture
def folder(stack: Stack, tmp_path: Path) -> Path:
    """The stack's own folder, where commands find it, with a fresh schema and no outputs."""
    (stack.folder / "schema.json").write_text(json.dumps(SCHEMA))
    for stale in stack.folder.glob("out.*"):
        stale.unlink()
    return stack.folder


def extract(folder: Path, *arguments: str, **options: Any) -> Any:
    return fanout("extract", *arguments, "--schema", "schema.json", cwd=folder, **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_gives_exactly_one_record(folder: Path) -> None:
    rows = [json.dumps({"id": f"d{n}", "text": f"document {n}"}) for n in range(200)]
    rows[10] = "{broken"
    rows[20] = '{"id": "d20"}'
    rows[30] = '{"id": "d31", "text": "its id comes again"}'
    (folder / "docs.jsonl").write_text("\n".join(rows) + "\n")
    done = extract(folder, "docs.jsonl", "-o", "out.jsonl")
    assert done.returncode == 1, done.stderr
    records = lines(folder / "out.jsonl")
    assert Counter(record["status"] for record in records) == {"ok": 197, "skipped": 3}
    assert len({record["id"] for record in records}) == 200
    for record in records:
        if record["status"] == "ok":
            jsonschema.validate(record["data"], SCHEMA)
            assert record["endpoint"] == "fake"
            assert record["usage"]["completion"] == 7
            assert record["timing"]["ttft_s"] == 0.012
    for line in (11, 21, 32):
        assert f"docs.jsonl:{line}" in done.stderr
    assert "Traceback" not in done.stderr


def test_failures_have_kinds_and_are_counted(folder: Path) -> None:
    words = ["fine", "BROKEN", "MENDS", "EMPTY", "THINKS", "REFUSED"]
    (folder / "docs.csv").write_text("id,text\n" + "".join(f"{w},a {w} one\n" for w in words))
    done = extract(folder, "docs.csv", "-o", "out.jsonl")
    assert done.returncode == 1
    found = {record["id"]: record for record in lines(folder / "out.jsonl")}
    assert {name: record["status"] for name, record in found.items()} == {
        "fine": "ok",
        "BROKEN": "invalid",
        "MENDS": "ok",
        "EMPTY": "invalid",
        "THINKS": "ok",
        "REFUSED": "failed",
    }
    assert found["BROKEN"]["error"]["kind"] == "schema"
    assert found["BROKEN"]["error"]["raw"] == "this is no JSON"
    assert found["BROKEN"]["attempts"] == 3
    assert found["BROKEN"]["usage"]["completion"] == 21
    assert found["MENDS"]["retried"] == {"schema": 1}
    assert found["EMPTY"]["error"]["kind"] == "empty"
    assert found["THINKS"]["retried"] == {"reasoning": 1}
    assert found["REFUSED"]["error"]["message"] == "HTTP 400: the prompt is refused"
    assert "1 request" in done.stderr
    assert "2 mended" in done.stderr or "1 schema" in done.stderr


def test_data_to_stdout_and_nothing_else(folder: Path) -> None:
    done = extract(folder, "-", "-o", "-", stdin='{"text": "one"}\n{"text": "two"}\n')
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line)["id"] for line in done.stdout.splitlines()) == [
        "stdin:1",
        "stdin:2",
    ]
    assert "tokens/s" in done.stderr


def test_a_folder_of_texts_into_parquet(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (folder / "texts").mkdir(exist_ok=True)
    for name in "abc":
        (folder / "texts" / f"{name}.md").write_text(f"text {name}")
    (folder / "texts" / "d.txt").write_bytes(b"\xff\xfe not utf-8")
    done = extract(folder, "texts", "-o", "out.parquet")
    assert done.returncode == 1, done.stderr
    rows = parquet.read_table(folder / "out.parquet").to_pylist()
    assert Counter(row["status"] for row in rows) == {"ok": 3, "skipped": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_reader_of_a_silent_pipe_ends_at_once(
    folder: Path, number: signal.Signals
) -> None:
    arguments = ["extract", "-", "--schema", "schema.json", "-o", "out.jsonl"]
    process = subprocess.Popen(
        [FANOUT, *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stderr
    process.stdin.write('{"text": "one"}\n')
    process.stdin.flush()
    try:
        # The row is being waited for behind a reader that has not got a whole piece yet.
        until(lambda: (folder / "out.jsonl").exists(), "the output is open")
        until(lambda: _open_jobs(folder), "the job is open")
        process.send_signal(number)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.stdin.close()
    said = process.stderr.read()
    process.stderr.close()
    assert said.splitlines()[-1] == "fanout: interrupted"
    assert "is paused" in said
    assert not _open_jobs(folder)


def _open_jobs(folder: Path) -> list[str]:
    listed = fanout("status", "--json", cwd=folder).stdout.splitlines()
    return [line for line in listed if json.loads(line)["state"] == "open"]


def test_an_output_is_not_overwritten_unasked(folder: Path) -> None:
    (folder / "docs.jsonl").write_text('{"text": "one"}\n')
    (folder / "out.jsonl").write_text("precious\n")
    done = extract(folder, "docs.jsonl", "-o", "out.jsonl")
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert (folder / "out.jsonl").read_text() == "precious\n"
    assert extract(folder, "docs.jsonl", "-o", "out.jsonl", "--overwrite").returncode == 0


def test_a_dead_endpoint_is_said_before_anything_is_queued(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "docs.jsonl").write_text('{"text": "one"}\n')
    url = f"http://127.0.0.1:{closed_port()}"
    (tmp_path / "fanout.toml").write_text(f'[endpoint.dead]\nurl = "{url}"\nmodel = "m"\n')
    _refused(tmp_path, "endpoint dead")


def test_an_unknown_model_is_said_with_what_is_served(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "docs.jsonl").write_text('{"text": "one"}\n')
    url = f"http://127.0.0.1:{stack.model_port}"
    (tmp_path / "fanout.toml").write_text(f'[endpoint.typo]\nurl = "{url}"\nmodel = "gtp-oss"\n')
    _refused(tmp_path, f"does not serve 'gtp-oss', but {MODEL}")


def test_a_second_stack_in_the_folder_is_refused(folder: Path) -> None:
    before = (folder / ".fanout" / "stack.toml").read_text()
    done = fanout("up", cwd=folder)
    assert done.returncode == 2
    assert "already runs" in done.stderr
    assert (folder / ".fanout" / "stack.toml").read_text() == before


def test_without_a_worker_it_says_how_to_start_one(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "docs.jsonl").write_text('{"text": "one"}\n')
    redis = (stack.folder / ".fanout" / "stack.toml").read_text()
    (tmp_path / "fanout.toml").write_text(
        f'{redis.splitlines()[0]}\n[endpoint.x]\nurl = "http://127.0.0.1:1"\ntier = "nobody"\n'
    )
    done = extract(tmp_path, "docs.jsonl", "-o", "out.jsonl")
    assert done.returncode == 2
    assert "fanout worker --tier nobody" in done.stderr


def _refused(folder: Path, says: str) -> None:
    log = folder / "up.log"
    with started("up", "--no-flower", cwd=folder, log=log) as process:
        until(lambda: "ready;" in log.read_text(), "up is ready", process=process, log=log)
        done = extract(folder, "docs.jsonl", "-o", "out.jsonl")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    until(lambda: not alive_in(folder), "no process is left")


def test_review_gives_findings_as_text_and_json(folder: Path) -> None:
    source = folder / "source"
    source.mkdir(exist_ok=True)
    (source / "a.py").write_text("x = 1\ny = 2\n")
    (source / "b.py").write_text("def f(): pass\n")
    (source / "notes.md").write_text("no source\n")
    done = fanout("review", "source", "-o", "out.json", "--fail-on", "error", cwd=folder)
    assert done.returncode == 1, done.stderr
    document = json.loads((folder / "out.json").read_text())
    assert [finding["path"] for finding in document["findings"]] == ["source/a.py", "source/b.py"]
    assert done.stdout.splitlines()[0].startswith("source/a.py:1: error: something")
    assert document["not_reviewed"] == []


def test_agent_joins_in_the_order_of_the_tasks(folder: Path) -> None:
    tasks = [f"task {n}" for n in range(16)] + [{"id": "last", "task": "REFUSED"}]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    done = fanout("agent", "tasks.json", "--merge", "Join them.", cwd=folder)
    assert done.returncode == 1, done.stderr
    joined = json.loads(done.stdout)
    assert [o["id"] for o in joined["outcomes"]] == [*(str(n) for n in range(16)), "last"]
    assert joined["outcomes"][0]["answer"] == "an answer"
    assert joined["outcomes"][-1]["error"]["kind"] == "request"
    assert joined["merged"]["answer"] == "an answer"


def test_doctor_finds_everything_well(folder: Path) -> None:
    done = fanout("doctor", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout


def test_status_shows_counts_that_add_up(folder: Path) -> None:
    (folder / "docs.jsonl").write_text('{"text": "one"}\n{"text": "REFUSED"}\n[]\n')
    extract(folder, "docs.jsonl", "-o", "out.jsonl")
    latest = json.loads(fanout("status", "--json", cwd=folder).stdout.splitlines()[0])
    assert latest["done"]
    assert latest["counts"] == {
        "submitted": 3, "ok": 1, "invalid": 0, "failed": 1, "skipped": 1, "cancelled": 0,
        "open": 0,
    }  # fmt: skip
