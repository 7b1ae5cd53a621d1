"""What `fanout up` has started and what ends unasked."""

from __future__ import annotations

import json
import os
import signal
import tomllib
from pathlib import Path

import redis
from kit import fanout, hostile, started, until
from model_server import MODEL
from stacks import model_server

SCHEMA = {"title": "T", "type": "object", "properties": {"word": {"type": "string"}}}


def pid_of(folder: Path, word: str) -> int | None:
    """The process in `folder` whose command line has `word`, but not the guard's."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            cwd = (process / "cwd").resolve(strict=True)
            line = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if cwd.is_relative_to(folder.resolve()) and word in line and "-I" not in line:
            return int(process.name)
    return None


def test_a_worker_and_redis_are_started_again_with_their_data(tmp_path: Path) -> None:
    here = hostile(tmp_path)
    (here / "schema.json").write_text(json.dumps(SCHEMA))
    rows = [json.dumps({"id": str(n), "text": f"SLOW {n}"}) for n in range(20)]
    (here / "docs.jsonl").write_text("\n".join(rows))
    log = here / "up.log"
    with model_server() as port:
        (here / "fanout.toml").write_text(
            f'[endpoint.fake]\nurl = "http://127.0.0.1:{port}"\nmodel = "{MODEL}"\n'
            "concurrency = 4\n"
        )
        with started("up", "--no-flower", cwd=here, log=log) as process:
            until(lambda: "ready;" in log.read_text(), "up is ready", process=process, log=log)
            url = tomllib.loads((here / ".fanout" / "stack.toml").read_text())["redis"]
            worker = pid_of(here, "fanout_workers")
            with redis.Redis.from_url(url) as client:
                client.set("kept", "yes")
                server = client.info("server")["process_id"]
            assert worker is not None
            for pid in (worker, server):
                os.kill(pid, signal.SIGKILL)
            until(
                lambda: log.read_text().count("started again (no. 1)") == 2,
                "both are started again", process=process, log=log,
            )  # fmt: skip
            assert "valkey ended (by SIGKILL)" in log.read_text()
            done = fanout(
                "extract", "docs.jsonl", "--schema", "schema.json", "-o", "out.jsonl", cwd=here
            )
            assert done.returncode == 0, done.stderr
            with redis.Redis.from_url(url) as client:
                assert client.get("kept") == b"yes"
            # It would end so each time, with the reason in its own words.
            (here / "fanout.toml").write_text("[endpoint.fake]\nurl = 5\n")
            worker = pid_of(here, "fanout_workers")
            assert worker is not None
            os.kill(worker, signal.SIGKILL)
            assert process.wait(60) == 3
    assert "and would so again; fanout worker: configuration: " in log.read_text()
