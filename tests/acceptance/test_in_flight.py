"""N over several worker processes, as the model server sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from conftest import Stack, model_server
from kit import alive_in, environment, fanout, hostile, started, until
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


def referee(*arguments: str, env: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """The lines of benchmarks/inflight at small size, by scenario."""
    benchmark = Path(__file__).parents[2] / "benchmarks" / "inflight"
    done = subprocess.run(
        [sys.executable, "-P", str(benchmark), *arguments],
        env=environment(env),
        text=True,
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["scenarios"]
    for name, line in lines.items():
        assert line["max_over_n"] <= 1, name
        assert (line["lost"], line["records_twice"], line["not_ok"]) == (0, 0, 0), name
    return lines


def test_the_server_is_full_while_there_is_work() -> None:
    lines = referee("--n", "24", "--items", "300", "one", "four")
    assert min(line["mean_over_n"] for line in lines.values()) > 0.95
    assert [line["duplicates"] for line in lines.values()] == [0, 0]


def test_n_follows_the_command_and_two_tiers_do_not_mix() -> None:
    lines = referee("--n", "24", "--items", "300", "changed", "tiers")
    assert min(line["mean_over_n"] for line in lines.values()) > 0.9
    assert lines["changed"]["max_over_largest_n"] <= 1


def test_a_killed_worker_s_part_goes_to_the_others_and_nothing_is_lost() -> None:
    line = referee("--n", "24", "--items", "300", "killed", env={"FANOUT_REDELIVER_AFTER_S": "6"})
    assert line["killed"]["back_s"] is not None


def test_two_endpoints_hold_the_sum_and_one_of_them_dies_and_comes_back() -> None:
    line = referee("--n", "24", "--items", "300", "endpoints")["endpoints"]
    assert line["first_alone"] > 0.9
    assert line["second_after"] > 0.9


def test_items_wait_for_the_only_endpoint_and_none_fails() -> None:
    line = referee("--n", "24", "--items", "300", "outage")["outage"]
    assert line["back_s"] is not None


def test_n_holds_while_redis_restarts() -> None:
    line = referee("--n", "24", "--items", "300", "restarted")["restarted"]
    assert line["duplicates"] == 0


def test_a_stopped_worker_s_requests_count_until_the_server_has_ended_them() -> None:
    line = referee("--n", "48", "stopped")["stopped"]
    assert line["while_stopped"] <= 1
