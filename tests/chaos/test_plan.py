"""From a seed to a schedule."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from chaoskit.faults import FAULTS
from chaoskit.plan import make_plan

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "chaos"


def test_equal_seeds_give_equal_plans_and_others_do_not() -> None:
    assert make_plan(7) == make_plan(7)
    assert len({make_plan(seed) for seed in range(50)}) == 50


def test_every_fault_comes_up() -> None:
    seen = {event.fault.name for seed in range(400) for event in make_plan(seed).events}
    assert seen == FAULTS.keys()


def test_only_what_is_asked_for() -> None:
    for seed in range(100):
        plan = make_plan(seed, only=("kill-worker", "second-job"))
        assert {event.fault.name for event in plan.events} <= {"kill-worker", "second-job"}
        assert plan.events
    with pytest.raises(KeyError):
        make_plan(1, only=("nothing",))


def test_plans_are_within_their_bounds() -> None:
    for seed in range(400):
        plan = make_plan(seed)
        fleet, counts = plan.fleet, Counter(event.fault.name for event in plan.events)
        assert 1 <= fleet.workers <= 3
        assert 12 <= fleet.items <= 2500
        assert 1 <= len(plan.events) <= 5
        assert all(0 <= event.share < 1 and event.delay_s >= 0 for event in plan.events)
        assert plan.events == tuple(sorted(plan.events, key=lambda e: (e.share, e.delay_s)))
        assert all(counts[name] == 1 for name in counts if FAULTS[name].once)
        assert "worker-leaves" not in counts or fleet.workers > 1


def test_a_plan_is_printed_by_its_seed() -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(BENCHMARK), "--plan", "7"],
        text=True,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == make_plan(7).lines()
