"""What a run has come to, sample by sample, and the CPU seconds that it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from procfs import cpu_s

_EVERY_S = 0.1


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
