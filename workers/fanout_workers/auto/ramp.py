"""The ramp: up in steps while throughput rises with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fanout_workers.auto.leg import Leg, Point
from fanout_workers.auto.observe import Sample, Window

#: Steps are large while the server is far from its limits, and small near them.
_FAR, _NEAR = 1.5, 1.08
#: Elasticity at which the server is far from its limits, and below which nothing more is gained.
_LINEAR, _FLAT = 0.8, 0.15
#: Where only completions tell, a step costs more than one D: there have to be few.
_SLOW_STEPS = ((0.6, 2.0), (0.35, 1.5), (-math.inf, 1.25))


@dataclass(frozen=True, slots=True)
class Step:
    """What the ramp wants: `n` next; `done` when that is where it ends."""

    n: int
    reason: str
    done: bool = False
    full: bool = False


def elasticity(points: Sequence[Point], span: float = 2.2) -> float | None:
    """d ln X / d ln load over the last points, back to a `span`th of the last one's load."""
    if not points:
        return None
    near = [p for p in points if p.load >= points[-1].load / span]
    xs, ys = [math.log(p.load) for p in near], [math.log(p.x) for p in near]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mx) ** 2 for x in xs)
    if spread < 1e-3:
        return None
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / spread


def smallest_near_best(points: Sequence[Point], share: float = 0.97) -> Point:
    """The point of the smallest N whose throughput is at least that share of the best.

    Each is taken as the mean of itself and its neighbours, against the noise of one.
    """
    ordered = sorted(points, key=lambda p: p.n)
    smooth = [
        sum(p.x for p in ordered[max(0, i - 1) : i + 2])
        / len(ordered[max(0, i - 1) : i + 2])
        for i in range(len(ordered))
    ]
    best = max(smooth)
    return next(p for p, x in zip(ordered, smooth, strict=True) if x >= share * best)


class Ramp:
    """From `n` upwards."""

    def __init__(self, n: int, direct: bool, near: bool = False) -> None:
        self.points: list[Point] = []
        self._direct = direct
        self._flat = 0
        self._first = n
        self._near = near
        self._leg = Leg(n, 0.0, 0.0)
        self._started = False

    def feed(self, sample: Sample, window: Window, limit: float) -> Step | None:
        """Take a poll; the next step when it is time for one.

        Args:
            sample: the poll.
            window: the past.
            limit: N that must not be exceeded; below the present one, the ramp ends.
        """
        if not self._started:
            self._started = True
            self._leg = self._new_leg(self._leg.n, 1.0, window)
        if not self._leg.feed(sample):
            return None
        point = self._leg.point
        assert point is not None  # noqa: S101 - feed() said so
        if self._doubtful(point) and self._leg.measured_s < self._longest(window):
            return None
        self.points.append(point)
        return self._step(point, window, limit)

    def _doubtful(self, point: Point) -> bool:
        """Whether it is better to look for longer than to go on."""
        if not self._direct:
            return False
        slope = elasticity([*self.points, point], 1.37)
        return slope is not None and slope < 0.3

    def _longest(self, window: Window) -> float:
        return max(6 * window.poll_s, 0.25 * window.duration_s)

    def _step(self, point: Point, window: Window, limit: float) -> Step:
        e = elasticity(self.points)
        best = max(p.x for p in self.points)
        if self._is_flat(e) or point.x < 0.93 * best:
            chosen = smallest_near_best(self.points)
            return Step(chosen.n, f"throughput no longer rises with N (elasticity {e or 0:.2f})", True)
        factor = self._factor(e)
        n = min(round(point.n * factor), math.floor(limit))
        if n <= point.n:
            return Step(min(point.n, math.floor(limit)), "the limit is reached", True, True)
        self._leg = self._new_leg(n, n / point.n, window)
        reason = "first step" if e is None else f"throughput rises with N (elasticity {e:.2f})"
        return Step(n, reason)

    def _is_flat(self, e: float | None) -> bool:
        if self._direct:
            near = elasticity(self.points, 1.37)
            return len(self.points) >= 4 and near is not None and near < _FLAT
        self._flat = self._flat + 1 if e is not None and e < _FLAT else 0
        return self._flat >= 2

    def _factor(self, e: float | None) -> float:
        if not self._direct:
            if e is None:
                return 2.0
            return next(factor for least, factor in _SLOW_STEPS if e >= least)
        early = self.points[-1].n < 4 * self._first
        if e is not None and e < _LINEAR and not early:
            self._near = True
        if self._near:
            return _NEAR
        return _FAR if early and e is not None and e >= _LINEAR else 1.25

    def _new_leg(self, n: int, factor: float, window: Window) -> Leg:
        d, poll = window.duration_s, window.poll_s
        if self._direct:
            # What was added is taken in before the others go on: half of D for a doubling.
            return Leg(n, max(poll, 0.5 * (factor - 1) * d), poll if self._near else 2 * poll)
        return Leg(n, 0.7 * d, 0.5 * d)
