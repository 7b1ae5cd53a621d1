"""N over several worker processes, as the model server sees it."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path

from kit import alive_in, fanout, hostile, started, until
from model_server import MODEL
from stacks import Stack, model_server

N = 6
SCHEMA = {"title": "T", "type": "object", "properties": {"word": {"type": "string"}}}


def most_in_flight(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats") as reply:
        most: int = json.load(reply)["max"]
        return most


def test_three_workers_hold_n_together(tmp_path: Path) -> None:
    here = hostile(tmp_path)
    (here / "schema.json").write_text(json.dumps(SCHEMA))
    rows = [json.dumps({"id": str(n), "text": f"SLOW {n}"}) for n in range(600)]
    (here / "docs.jsonl").write_text("\n".join(rows))
    log = here / "up.log"
    with model_server() as port:
        (here / "fanout.toml").write_text(
            f'[endpoint.fake]\nurl = "http://127.0.0.1:{port}"\nmodel = "{MODEL}"\n'
            f"concurrency = {N}\n"
        )
        with started("up", "--workers", "3", "--no-flower", cwd=here, log=log) as process:
            until(lambda: "ready;" in log.read_text(), "up is ready", process=process, log=log)
            done = fanout(
                "extract", "docs.jsonl", "--schema", "schema.json", "-o", "out.jsonl", cwd=here
            )
            assert done.returncode == 0, done.stderr
            assert most_in_flight(port) == N
            os.kill(process.pid, signal.SIGTERM)
            process.wait(30)
    ids = [json.loads(line)["id"] for line in (here / "out.jsonl").read_text().splitlines()]
    assert sorted(ids, key=int) == [str(n) for n in range(600)]
    until(lambda: not alive_in(here), "no process is left")


def test_n_changes_while_workers_run(stack: Stack) -> None:
    def parts() -> str:
        return fanout("endpoint", "list", cwd=stack.folder).stdout

    def part() -> int:
        return int(parts().splitlines()[1].split()[-2])

    assert part() == 4
    assert parts() == fanout("endpoint", cwd=stack.folder).stdout
    assert "closed" in parts()
    try:
        # By the name of its tier, which has no other endpoint.
        done = fanout("endpoint", "set", "default", "--concurrency", "2", cwd=stack.folder)
        assert done.returncode == 0, done.stderr
        assert "2 (configured: 4)" in done.stdout
        until(lambda: part() == 2, "the worker comes down")
        done = fanout("endpoint", "set", "fake", "-j", "24", cwd=stack.folder)
        assert done.returncode == 0, done.stderr
        until(lambda: part() == 24, "the worker goes above the N of its configuration")
    finally:
        done = fanout("endpoint", "reset", "fake", cwd=stack.folder)
    assert done.returncode == 0, done.stderr
    until(lambda: part() == 4, "the worker comes down again")
    for refused in (["set", "nobody", "-j", "2"], ["set", "fake"], ["set", "fake", "-j", "-1"]):
        assert fanout("endpoint", *refused, cwd=stack.folder).returncode == 2
