"""CPU seconds and memory of a process and its children, from /proc (Linux)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_EVERY_S = 0.1


def family(pid: int) -> Iterator[int]:
    """A process and what it has started, as far as it lives."""
    yield pid
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (thread / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from family(int(child))


def cpu_s(pid: int) -> float:
    """User and system CPU seconds of a process and its children, all threads."""
    total = 0.0
    for member in family(pid):
        try:
            # The name may hold anything: the fields follow its last bracket.
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) * _TICK_S
    return total


def peak_rss_mb(pid: int) -> float:
    """The largest resident sets that a process and its children have had, added up, in MB."""
    total = 0
    for member in family(pid):
        try:
            status = Path(f"/proc/{member}/status").read_text()
        except OSError:
            continue
        total += sum(
            int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")
        )
    return total / 1024


@dataclass(frozen=True)
class Sample:
    """At the server's clock: replies and in-flight seconds so far; CPU seconds by process."""

    at: float
    answered: int
    in_flight_s: float
    cpu: dict[str, float]


def watch(
    pids: dict[str, int],
    stats: Callable[[], Any],
    total: int,
    alive: Callable[[], bool],
    limit_s: float,
) -> list[Sample]:
    """Samples until `total` replies have been given.

    Raises SystemExit when a process ends before, or when `limit_s` seconds have passed.
    """
    samples: list[Sample] = []
    deadline = time.monotonic() + limit_s
    while not samples or samples[-1].answered < total:
        if not alive() or time.monotonic() > deadline:
            done = samples[-1].answered if samples else 0
            raise SystemExit(f"only {done} of {total} requests were answered")
        seen = stats()
        cpu = {name: cpu_s(pid) for name, pid in pids.items()}
        in_flight_s = sum(int(n) * s for n, s in seen["in_flight"]["seconds_at"].items())
        samples.append(Sample(seen["seconds"], seen["answered"], in_flight_s, cpu))
        time.sleep(_EVERY_S)
    return samples


def between(samples: Iterable[Sample], total: int) -> tuple[Sample, Sample]:
    """The samples at about 10 % and 90 % of the replies: without start, run-in and tail."""
    inside = [s for s in samples if 0.1 * total <= s.answered <= 0.9 * total]
    if len(inside) < 2:
        raise SystemExit("too few items for a measurement")
    return inside[0], inside[-1]
