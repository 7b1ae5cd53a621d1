"""The ramp: up in steps while throughput rises with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fanout_workers.auto.leg import Leg, Point
from fanout_workers.auto.observe import Sample, Window

#: Factor of a step while the server is far from its limits, at first, and once it is near them.
_FAR, _FIRST, _NEAR = 1.5, 1.25, 1.08
#: Elasticity from which on the server is far from its limits, below which a step is looked at for
#: longer, and below which nothing more is to be gained.
_LINEAR, _DOUBT, _FLAT = 0.8, 0.2, 0.15
#: A step is charged against throughput this far below it.
_BELOW = (1.1, 1.5)
#: Where only completions tell, a step costs more than one D: there have to be few.
#: Completions tell of the N of so many D ago; D is the present one, which grows with N.
_LAG_D = 1.1
_SLOW_STEPS = ((0.6, 2.0), (0.35, 1.5), (-math.inf, 1.25))


@dataclass(frozen=True, slots=True)
class Step:
    """What the ramp wants.

    Attributes:
        n: N next.
        reason: why.
        end: whether the ramp ends here: `flat`, more gives nothing; `limit`, no more is allowed.
    """

    n: int
    reason: str
    end: str | None = None


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


def smallest_near_best(points: Sequence[Point], share: float = 0.97, wide: int = 1) -> Point:
    """The point of the smallest N whose throughput is at least that share of the best.

    Each counts as the mean of itself and `wide` neighbours on either side, against the noise of
    one; that is for points which lie close together.
    """
    ordered = sorted(points, key=lambda p: p.n)
    groups = [ordered[max(0, i - wide) : i + 1 + wide] for i in range(len(ordered))]
    smooth = [sum(p.x for p in group) / len(group) for group in groups]
    best = max(smooth)
    return next(p for p, x in zip(ordered, smooth, strict=True) if x >= share * best)


class Ramp:
    """From `n` upwards.

    Args:
        n: where it starts.
        direct: whether tokens are seen as they come.
        near: whether the server is known to be near its limits.
        early: N below which steps are larger.
        points: what is known of smaller N.
    """

    def __init__(
        self, n: int, direct: bool, near: bool, early: int, points: Sequence[Point] = ()
    ) -> None:
        self.points = list(points)
        self._early = early
        self._direct = direct
        self._near = near
        self._leg: Leg | None = None
        self._factor = 1.0
        self._n = n
        self._doubted = False
        self._flat = 0
        self._stepped_at = -math.inf

    def feed(self, sample: Sample, window: Window, limit: float) -> Step | None:
        """Take a poll; the next step when it is time for one.

        Args:
            sample: the poll.
            window: the past.
            limit: N that must not be exceeded.
        """
        if self._leg is None:
            self._leg = self._new_leg(window)
            self._stepped_at = sample.at
        if not self._direct and sample.at < self._stepped_at + _LAG_D * window.duration_s:
            return None
        if not self._leg.feed(sample):
            return None
        point = self._leg.point
        assert point is not None  # noqa: S101 - feed() said so
        self._doubted = self._direct and self._doubtful(point)
        longest = max(6 * window.poll_s, 0.4 * window.duration_s)
        if self._doubted and self._leg.measured_s < longest:
            return None
        self.points.append(point)
        return self._step(limit)

    def _doubtful(self, point: Point) -> bool:
        # From end to end: a server's speed wanders, so that neighbouring points tell more of a
        # step than a line through many does.
        if len(self.points) < 2:
            return False
        before = self.points[-2]
        rise = math.log(point.load / before.load)
        return rise > 0.05 and math.log(point.x / before.x) < _DOUBT * rise

    def _step(self, limit: float) -> Step:
        e = elasticity(self.points)
        if self._is_flat(e):
            near = self._direct
            chosen = smallest_near_best(self.points, 0.97 if near else 0.94, 1 if near else 0)
            return Step(chosen.n, "throughput no longer rises with N", "flat")
        self._factor = self._next_factor(e)
        n = min(round(self._n * self._factor), math.floor(limit))
        if n <= self._n:
            return Step(min(self._n, math.floor(limit)), "N must not be larger", "limit")
        self._n, self._leg = n, None
        reason = "first step" if e is None else f"throughput rises with N (elasticity {e:.2f})"
        return Step(n, reason)

    def _is_flat(self, e: float | None) -> bool:
        if self._direct:
            gained = self._gained()
            return self._doubted and gained is not None and gained < _FLAT
        best = max(p.x for p in self.points)
        self._flat = self._flat + 1 if e is not None and e < _FLAT else 0
        return self._flat >= 2 or self.points[-1].x < 0.93 * best

    def _gained(self) -> float | None:
        """Elasticity between the last point and those a few steps below it."""
        last = self.points[-1]
        least, most = _BELOW
        below = [p for p in self.points if last.load / most <= p.load <= last.load / least]
        if not below:
            return None
        load = sum(math.log(p.load) for p in below) / len(below)
        x = sum(math.log(p.x) for p in below) / len(below)
        return (math.log(last.x) - x) / (math.log(last.load) - load)

    def _next_factor(self, e: float | None) -> float:
        if not self._direct:
            if e is None:
                return 2.0
            return next(factor for least, factor in _SLOW_STEPS if e >= least)
        early = self._n < self._early
        if e is not None and e < _LINEAR and not early:
            self._near = True  # and stays so: one lucky measurement must not lead past a cliff
        if self._near and not early:
            return _NEAR
        return _FAR if early and e is not None and e >= _LINEAR else _FIRST

    def _new_leg(self, window: Window) -> Leg:
        d, poll = window.duration_s, window.poll_s
        if not self._direct:
            return Leg(self._n, 0.0, 0.5 * d)
        # The prompts of what is added are taken in before the others go on: that is the cost of
        # the step and not of the new N, so it is left out.
        settle = max(poll, 0.5 * (self._factor - 1) * d)
        return Leg(self._n, settle, poll if self._near else 2 * poll)
