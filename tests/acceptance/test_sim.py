"""`fanout sim` as a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.request
from pathlib import Path

import pytest
from kit import fanout, hostile, started, until


def ask(url: str, **body: object) -> dict[str, object]:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps({"messages": [{"role": "user", "content": "hello"}], **body}).encode(),
        {"X-Request-Id": "item-0"},
    )
    with urllib.request.urlopen(request) as reply:
        said: dict[str, object] = json.load(reply)
        return said


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    here, ready, log = hostile(tmp_path), tmp_path / "ready", tmp_path / "log"
    (here / "mine.toml").write_text("points = [[1, 50], [8, 200]]\nmax_model_len = 4096\n")
    options = ["--model", "mine.toml", "--speed", "100", "--output-lengths", "lognormal:20,0.3"]
    with started(
        "sim", *options, "--port", "0", "--ready-file", str(ready), cwd=here, log=log
    ) as process:
        until(ready.exists, "the simulator listens", process=process, log=log)
        url = ready.read_text()
        assert url in log.read_text()
        assert ask(url)["model"] == "mine"
        with urllib.request.urlopen(f"{url}/stats") as reply:
            assert json.load(reply)["answered"] == 1
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "nobody"],
        ["--model", "missing.toml"],
        ["--speed", "0"],
        ["--seconds", "soon"],
        ["--output-lengths", "lognormal:1"],
        ["--fault", "error"],
        ["--fault", "flood=0.1"],
        ["--outage", "now"],
        ["--max-num-seqs", "0"],
        ["--model", "dense", "--reasoning", "low"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_simulated_is_one_sentence(tmp_path: Path, options: list[str]) -> None:
    done = fanout("sim", "--port", "0", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = fanout("sim", "--port", port, cwd=tmp_path)
    assert done.returncode == 2
    assert port in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_its_help_can_be_read(tmp_path: Path) -> None:
    done = fanout("sim", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for option in ("--model", "--speed", "--output-lengths", "--seconds", "--fault", "--outage"):
        assert option in done.stdout
