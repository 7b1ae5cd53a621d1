"""Two commands for one job: the second is refused, and touches nothing."""

from __future__ import annotations

import json
import subprocess
import urllib.request

from kit import FANOUT, environment, fanout, until
from stacks import Stack

COUNT = 20
SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}


def test_a_job_has_one_collector(stack: Stack) -> None:
    folder = stack.folder
    for stale in folder.glob("one.*"):
        stale.unlink()
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    texts = ["HANGS", *(f"document {n}" for n in range(1, COUNT))]
    rows = [json.dumps({"text": text}) for text in texts]
    (folder / "docs.jsonl").write_text("\n".join(rows) + "\n")
    extract = ("extract", "docs.jsonl", "--schema", "schema.json", "-o")
    output = folder / "one.jsonl"
    first = subprocess.Popen(
        [FANOUT, *extract, output.name], cwd=folder, env=environment(), stderr=subprocess.PIPE
    )
    try:
        until(
            lambda: output.exists() and output.read_bytes().count(b"\n") >= 5,
            "some records are written",
            process=first,
        )
        job = json.loads((folder / "one.jsonl.job").read_text())["job"]
        for refused in (
            fanout(*extract, "other.jsonl", "--resume", job, cwd=folder),
            fanout(*extract, "-", "--resume", job, cwd=folder),
            fanout("results", job, "-o", "other.jsonl", cwd=folder),
        ):
            assert refused.returncode == 2, refused.stderr
            assert f"job {job} is being collected by process {first.pid}" in refused.stderr
            assert refused.stdout == ""
        assert not (folder / "other.jsonl.job").exists()
        with urllib.request.urlopen(f"http://127.0.0.1:{stack.model_port}/release"):
            pass
        _, said = first.communicate(timeout=60)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 0, said
    verified = fanout("verify", "one.jsonl", cwd=folder)
    assert verified.returncode == 0, verified.stdout
