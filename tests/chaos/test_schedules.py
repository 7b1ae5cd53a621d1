"""Schedules of faults against the real command: `make bench NAME=chaos` in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chaoskit.faults import FAULTS

#: Beyond what a stuck schedule takes to be told with its seed; they take about 30 s.
pytestmark = pytest.mark.timeout(300)

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "chaos"


def chaos(*arguments: str) -> tuple[dict[str, Any], str]:
    """The benchmark's line, and what it said."""
    done = subprocess.run(
        [sys.executable, "-P", str(BENCHMARK), *arguments],
        text=True,
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert done.stdout, done.stderr
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line, done.stderr


def test_nothing_is_lost_whatever_dies() -> None:
    names = "kill-worker,term-worker,kill-redis,cut-all,endpoint-down,wire-reset,kill-client"
    line, said = chaos("--schedules", "5", "--seed", "20", "--jobs", "5", "--faults", names)
    assert line["failed"] == [], said
    assert (line["schedules"], line["lost"], line["twice"]) == (5, 0, 0)
    assert (line["above_n"], line["stuck"], line["left_processes"]) == (0, 0, 0)
    assert sum(line["struck"].values()) >= 5


def test_nothing_is_lost_whatever_is_slow_or_wrong() -> None:
    deadly = {"kill-worker", "term-worker", "kill-redis", "cut-all", "endpoint-down", "wire-reset"}
    names = ",".join(name for name in FAULTS if name not in deadly)
    line, said = chaos("--schedules", "5", "--seed", "60", "--jobs", "5", "--faults", names)
    assert line["failed"] == [], said
    assert (line["schedules"], line["lost"], line["twice"]) == (5, 0, 0)
    assert (line["above_n"], line["stuck"], line["left_processes"]) == (0, 0, 0)
    assert sum(line["struck"].values()) >= 5
