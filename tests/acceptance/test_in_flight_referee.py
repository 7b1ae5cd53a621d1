"""N as a referee counts it at the server: benchmarks/inflight at small size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kit import environment

#: Against one that hangs: a scenario takes about half a minute, on a busy machine some times that.
pytestmark = pytest.mark.timeout(300)


def referee(*arguments: str, env: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """The lines of benchmarks/inflight at small size, by scenario."""
    benchmark = Path(__file__).parents[2] / "benchmarks" / "inflight"
    done = subprocess.run(
        [sys.executable, "-P", str(benchmark), *arguments],
        env=environment(env),
        text=True,
        capture_output=True,
        timeout=280,
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
    line = referee("--n", "24", "--items", "480", "outage")["outage"]
    assert line["back_s"] is not None


def test_n_holds_while_redis_restarts() -> None:
    line = referee("--n", "24", "--items", "300", "restarted")["restarted"]
    assert line["duplicates"] == 0


def test_a_stopped_worker_s_requests_count_until_the_server_has_ended_them() -> None:
    line = referee("--n", "48", "stopped")["stopped"]
    assert line["while_stopped"] <= 1
