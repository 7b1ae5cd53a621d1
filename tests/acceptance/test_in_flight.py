"""N over several worker processes, as the model server sees it."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path

from conftest import Stack, model_server
from kit import alive_in, fanout, hostile, started, until
from model_server import MODEL

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
        return fanout("endpoint", cwd=stack.folder).stdout

    def part() -> int:
        return int(parts().splitlines()[1].split()[-1])

    assert part() == 4
    try:
        done = fanout("endpoint", "fake", "--concurrency", "2", cwd=stack.folder)
        assert done.returncode == 0, done.stderr
        assert "2 (configured: 4)" in done.stdout
        until(lambda: part() == 2, "the worker comes down")
    finally:
        fanout("endpoint", "fake", "--reset", cwd=stack.folder)
    until(lambda: part() == 4, "the worker goes up again")
    assert fanout("endpoint", "nobody", "-j", "2", cwd=stack.folder).returncode == 2
    assert fanout("endpoint", "-j", "2", cwd=stack.folder).returncode == 2
