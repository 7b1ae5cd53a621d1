"""What the harness checks, seen to fail."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from chaoskit import ports
from chaoskit.faults.broker import CutAll
from chaoskit.faults.workers import TermWorker
from chaoskit.logs import tracebacks, unexpected
from chaoskit.plan import Server
from chaoskit.processes import left_behind
from chaoskit.servers import Sim
from chaoskit.verdict import ids_problems, record_problems

IDS = ["a", "b", "c"]


def record(name: str, kind: str | None = None, status: str = "failed") -> dict[str, Any]:
    if kind is None:
        return {"id": name, "status": "ok", "data": {}, "error": None}
    return {"id": name, "status": status, "data": None, "error": {"kind": kind, "message": "?"}}


def test_ids_that_are_lost_twice_or_unknown() -> None:
    assert ids_problems(["a", "b"], {"a": 1, "b": 1}) == (0, 0, [])
    lost, twice, told = ids_problems(["a", "b", "c"], {"a": 3, "b": 1, "d": 1})
    assert (lost, twice) == (1, 2)
    assert told == ["1 lost: ['c']", "1 twice: ['a']", "1 unknown: ['d']"]


def test_failures_that_no_fault_explains() -> None:
    records = [record("a"), record("b", "server"), record("c", "cancelled", "cancelled")]
    statuses, kinds, told = record_problems(IDS, records, {"server", "cancelled"}, cancelled=True)
    assert (statuses, kinds) == (
        {"ok": 1, "failed": 1, "cancelled": 1},
        {"server": 1, "cancelled": 1},
    )
    assert not told
    assert len(record_problems(IDS, records, {"empty"}, cancelled=False)[2]) == 2
    assert record_problems(IDS, [{**record("a"), "data": None}], set(), cancelled=False)[2]
    assert not record_problems(IDS, [{**record("b"), "ordinal": 1}], set(), cancelled=False)[2]
    assert record_problems(IDS, [{**record("b"), "ordinal": 2}], set(), cancelled=False)[2]


_LOG = """\
10:00 WARNING consumer: Connection to broker lost
Traceback (most recent call last):
  File "x.py", line 1, in y
    raise
redis.exceptions.ConnectionError: Connection closed by server.
10:01 INFO fine
Traceback (most recent call last):
  File "x.py", line 2, in y

ValueError: nobody expected this
"""


def test_tracebacks_that_no_fault_explains(tmp_path: Path) -> None:
    (tmp_path / "worker.log").write_text(_LOG)
    assert list(tracebacks(_LOG)) == [
        "redis.exceptions.ConnectionError: Connection closed by server.",
        "ValueError: nobody expected this",
    ]
    assert unexpected(tmp_path, [CutAll()]) == ["worker.log: 1 x ValueError: nobody expected this"]
    assert len(unexpected(tmp_path, [TermWorker(0)])) == 2


def test_a_process_that_is_left_is_seen_by_its_group_and_by_its_folder(tmp_path: Path) -> None:
    inside, elsewhere = tmp_path / "inside", tmp_path / "elsewhere"
    inside.mkdir()
    elsewhere.mkdir()
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    here = subprocess.Popen(command, cwd=inside, start_new_session=True)
    there = subprocess.Popen(command, cwd=elsewhere, start_new_session=True)
    try:
        assert [line.split()[0] for line in left_behind(inside, [])] == [str(here.pid)]
        found = {line.split()[0] for line in left_behind(inside, [there.pid])}
        assert found == {str(here.pid), str(there.pid)}
    finally:
        for process in (here, there):
            process.kill()
            process.wait()
    assert left_behind(inside, [here.pid, there.pid]) == []


def test_two_schedules_never_choose_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_LAST", ports._FIRST + 40)
    first, second = ports.Ports(), ports.Ports()
    chosen = [one.choose() for one in (first, second) * 8]
    assert len(set(chosen)) == len(chosen)
    first.release()
    second.release()


@pytest.mark.parametrize(
    ("turns", "n_at"),
    [
        ([], {0.5: 4}),
        ([(1.0, 8)], {0.5: 4, 2.0: 8}),
        # Lowered: for the time in which requests may end, the one before goes on.
        ([(1.0, 2)], {0.5: 4, 2.0: 4, 12.0: 2}),
        # Raised again before that: it never had to come down.
        ([(1.0, 2), (3.0, 4)], {0.5: 4, 2.0: 4, 4.0: 4, 12.0: 4}),
    ],
)
def test_n_by_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    turns: list[tuple[float, int]],
    n_at: dict[float, int],
) -> None:
    sim = Sim(Server("one", 4, ()), 1, tmp_path)
    for at, n in turns:
        monkeypatch.setattr(time, "monotonic", lambda at=at: at)
        sim.turn(n)
    phases = sim._phases(0.0, 20.0)
    for at, n in n_at.items():
        assert [found for start, end, found in phases if start <= at < end] == [n], at
