"""What decides how many requests are in flight: the controller, and what it is compared with."""

from __future__ import annotations

import math

from fanout_workers.auto import Bounds, Controller, Observation

START = 16


class Fixed:
    """Always the same N."""

    def __init__(self, n: int) -> None:
        self.n = n

    def look(self, seen: Observation) -> None:
        """Nothing to learn."""


class Auto:
    """fanout's own controller."""

    def __init__(self) -> None:
        self._controller = Controller(Bounds(START))
        self.n = self._controller.n

    def look(self, seen: Observation) -> None:
        self.n = self._controller.observe(seen).n


class Aimd:
    """One more each mean request duration, half on an error or a timeout."""

    def __init__(self) -> None:
        self.n = START
        self._wait_s = 0.0
        self._at: float | None = None
        self._duration_s = 60.0

    def look(self, seen: Observation) -> None:
        passed = 0.0 if self._at is None else seen.at - self._at
        self._at = seen.at
        if seen.completed:
            self._duration_s = seen.latency_s / seen.completed
        if seen.timeouts or seen.overloads:
            self.n = max(1, self.n // 2)
            self._wait_s = 0.0
        self._wait_s += passed
        if self._wait_s >= self._duration_s:
            self._wait_s, self.n = 0.0, min(1024, self.n + 1)


class Gradient:
    """The latency gradient of Netflix's concurrency-limits (Gradient2): its defaults."""

    def __init__(self) -> None:
        self.n = START
        self._limit = float(START)
        self._long_s: float | None = None

    def look(self, seen: Observation) -> None:
        if not seen.completed:
            return
        short_s = seen.latency_s / seen.completed
        if self._long_s is None:
            self._long_s = short_s
        self._long_s += (short_s - self._long_s) * 2 / (600 + 1) * seen.completed
        if self._long_s / short_s > 2:
            self._long_s *= 0.95
        if seen.in_flight < self._limit / 2:
            return
        gradient = max(0.5, min(1.0, 1.5 * self._long_s / short_s))
        wanted = self._limit * gradient + math.sqrt(self._limit)
        self._limit = max(1.0, min(1024.0, self._limit * 0.8 + wanted * 0.2))
        self.n = round(self._limit)
