"""Sweeps of the three simulated models against the published table, by the real command.

Each row has to be within 3 % of the published aggregate tokens/s, within 5 % past the peak. The
simulators run faster than time. The faster, the more the start of a wave and whatever else this
machine does weigh in it, and always as a loss; so a row that misses is measured once more, and
how many were is said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fanout.sim.published import TABLES, TIMEOUT_S, Row

FANOUT = str(Path(sys.executable).with_name("fanout"))
#: Simulated seconds in one second. The plateau gives few tokens/s for its many requests.
SPEEDS = {"dense": 25.0, "moe": 20.0, "mamba": 40.0}
#: The N that the sweep should recommend.
EXPECTED = {"dense": 256, "moe": 256, "mamba": 8}
TOLERANCE, PAST_PEAK = 0.03, 0.05
START_S = 30.0


@contextmanager
def simulated(alias: str, speed: float, place: Path) -> Iterator[str]:
    """The URL of a simulator that runs as long as the block."""
    ready = place / f"{alias}.url"
    command = [FANOUT, "sim", "--model", alias, "--speed", str(speed), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--ready-file", str(ready)], cwd=place, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_S
        while not (ready.exists() and ready.read_text().strip()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the simulator of {alias} did not start")
            time.sleep(0.05)
        yield ready.read_text().strip()
    finally:
        process.terminate()
        process.wait(START_S)


def sweep(url: str, ns: Sequence[int], base: Path, timeout_s: float, *more: str) -> dict[str, Any]:
    """The sweep of these Ns, as its file has it."""
    listed = ",".join(map(str, ns))
    done = subprocess.run(
        [FANOUT, "sweep", url, "-c", listed, "--timeout", str(timeout_s), "-o", str(base), *more],
        cwd=base.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"fanout sweep ended with status {done.returncode}")
    print(done.stdout)
    found: dict[str, Any] = json.loads(base.with_suffix(".json").read_text())["sweeps"][0]
    return found


def deviations(found: dict[str, Any], rows: Sequence[Row], speed: float) -> dict[int, float]:
    """(measured / published - 1) by N."""
    measured = {p["concurrency"]: p["tokens_per_s"] / speed for p in found["points"]}
    return {row.concurrency: measured[row.concurrency] / row.tokens_per_s - 1 for row in rows}


def allowed(rows: Sequence[Row], n: int) -> float:
    """How far the row of N may be off."""
    peak = max(rows, key=lambda row: row.tokens_per_s)
    return PAST_PEAK if n > peak.concurrency else TOLERANCE


def measure(alias: str, speed: float, place: Path) -> dict[str, Any]:
    """One model's rows."""
    rows = TABLES[alias]
    ns = [row.concurrency for row in rows]
    with simulated(alias, speed, place) as url:
        found = sweep(url, ns, place / alias, TIMEOUT_S / speed)
        off = deviations(found, rows, speed)
        again = [n for n in ns if abs(off[n]) > allowed(rows, n)]
        if again:
            second = sweep(url, again, place / f"{alias}-again", TIMEOUT_S / speed)
            chosen = [row for row in rows if row.concurrency in again]
            off |= deviations(second, chosen, speed)
    for row in rows:
        n = row.concurrency
        print(f"{alias:6} N = {n:3}  {row.tokens_per_s:8.2f} published  {off[n]:+.2%}")
    analysis = found["analysis"]
    return {
        "rows": len(rows),
        "largest_deviation": worst([off[n] for n in ns if allowed(rows, n) == TOLERANCE]),
        "largest_past_peak": worst([off[n] for n in ns if allowed(rows, n) == PAST_PEAK]),
        "measured_again": len(again),
        "within": all(abs(off[n]) <= allowed(rows, n) for n in ns),
        "recommended": analysis["recommended"],
        "expected": EXPECTED[alias],
        "peak": analysis["peak"],
        "cliff": analysis["cliff"],
        "curve": analysis["curve"],
        "speed": speed,
    }


def worst(off: Sequence[float]) -> float | None:
    """The largest by absolute value."""
    return round(max(off, key=abs), 4) if off else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/sweep", description=__doc__)
    parser.add_argument("--speed", type=float, help="the same for all models")
    parser.add_argument("--model", action="append", choices=list(TABLES))
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        models = {
            alias: measure(alias, options.speed or SPEEDS[alias], Path(place))
            for alias in options.model or TABLES
        }
    figures = {
        "rows": sum(found["rows"] for found in models.values()),
        "largest_deviation": worst([found["largest_deviation"] for found in models.values()]),
        "largest_past_peak": worst([f["largest_past_peak"] or 0.0 for f in models.values()]),
        "within": all(found["within"] for found in models.values()),
        "peaks_as_published": all(f["recommended"] == f["expected"] for f in models.values()),
        "seconds": round(time.monotonic() - began),
        "models": models,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
