"""N over several worker processes, as the model server sees it."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path

from conftest import model_server
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
