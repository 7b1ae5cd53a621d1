"""The ramp: up in steps while throughput rises with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fanout_workers.auto.leg import Leg, Point
from fanout_workers.auto.observe import Sample
from fanout_workers.auto.probe import Probe
from fanout_workers.auto.window import WOBBLE, Window

#: Factor of a step while the server is far from its limits, at first, and once it is near them:
#: the last to the power of `Window.spread`.
_FAR, _FIRST, _NEAR = 1.5, 1.25, 1.06
#: Elasticity from which on the server is far from its limits, below which a step is looked at for
#: longer, and below which nothing more is to be gained. Wide steps are worth it for less: for this
#: gain of one, as ln of the ratio.
_LINEAR, _DOUBT, _FLAT = 0.8, 0.2, 0.15
_GAIN = 0.015
#: A step is charged against throughput so far below it that the server's wobble does not hide what
#: is gained: in ln N, for one of `Window.wobble`. With .017 that is N / 1.04 to N / 1.2.
_FROM, _TO = 2.3, 10.6
_MOST_WOBBLE = 0.06
#: How long a step in doubt is looked at: polls, D and seconds. Longer does not tell more, for the
#: speed wanders on. Where requests are short, so are polls: three of them are a wave of prompts.
_LOOK_POLLS, _LOOK_D, _LOOK_S = 3, 0.15, 15.0
#: What seems to gain nothing is compared with the N below it in turns, at most so many: the speed
#: wanders by more from one step to the next than a step gains.
_CHECK_TURNS = 3
#: Where polls differ by chance, with one further below, to this power of a step for each that
#: `Window.spread` is above 1: what two or three steps gain can be told, what one does cannot.
_CHECK_BELOW = 4.0
#: Loss in turns, as ln of the ratio, from which on it was a fall and not a plateau.
_FALL = 0.005
#: Completions tell of the N of so many D ago; D is the present one, which grows with N.
_LAG_D = 1.1
#: Where only completions tell, a step costs more than one D: there have to be few.
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


def smallest_near_best(points: Sequence[Point], share: float = 0.97, within: float = 0.12) -> Point:
    """The point of the smallest N whose throughput is at least that share of the best.

    Each counts as the mean of itself and those whose ln N is `within` of it, against the noise of
    one: points that lie further off are other N.
    """
    ordered = sorted(points, key=lambda p: p.n)
    groups = [[q for q in ordered if abs(math.log(q.n / p.n)) <= within] for p in ordered]
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

    Attributes:
        points: what was measured, and was known before.
        fell: whether it ended because throughput fell: the last N gave less than the one below.
    """

    def __init__(
        self, n: int, direct: bool, near: bool, early: int, points: Sequence[Point] = ()
    ) -> None:
        self.points = list(points)
        self.fell = False
        self._early = early
        self._direct = direct
        self._near = near
        self._leg: Leg | None = None
        self._factor = 1.0
        self._n = n
        self._flat = 0
        self._stepped_at = -math.inf
        self._wobble, self._spread = WOBBLE, 1.0
        self._check: Probe | None = None

    def feed(self, sample: Sample, window: Window, limit: float) -> Step | None:
        """Take a poll; the next step when it is time for one.

        Args:
            sample: the poll.
            window: the past.
            limit: N that must not be exceeded.
        """
        self._spread = window.spread
        if self._check is not None:
            return self._checking(self._check, sample, window, limit)
        if self._leg is None:
            self._leg = self._new_leg(window)
            self._stepped_at = sample.at
        if not self._direct and sample.at < self._stepped_at + _LAG_D * window.duration_s:
            return None
        if not self._leg.feed(sample):
            return None
        self._wobble = min(_MOST_WOBBLE, max(WOBBLE, window.wobble))
        point = self._leg.point
        assert point is not None  # noqa: S101 - feed() said so
        polls = _LOOK_POLLS * window.patience
        longest = max(polls * window.poll_s, _LOOK_D * window.duration_s, _LOOK_S)
        doubted = self._direct and self._gains_less(point, self._flat_below + _DOUBT - _FLAT)
        if doubted and self._leg.measured_s < longest:
            return None
        self.points.append(point)
        return self._step(limit)

    def _step(self, limit: float) -> Step:
        e = elasticity(self.points)
        if not self._is_flat(e):
            return self._up(e, limit)
        return self._begin_check() if self._direct else self._flat_end(0.94, 0.0)

    def _begin_check(self) -> Step:
        last = self.points[-1]
        smaller = sorted((p for p in reversed(self.points) if p.n < last.n), key=lambda p: -p.n)
        if not smaller:  # the load has changed, and not N
            return self._flat_end()
        most = last.n / math.pow(_NEAR, _CHECK_BELOW * (self._spread - 1))
        below = next((p for p in smaller if p.n <= most), smaller[-1])
        least = self._flat_below * math.log(last.n / below.n)
        self._check = Probe(below.n, last.n, least, turns=_CHECK_TURNS, points=[below, last])
        return Step(below.n, "throughput seems to rise no longer: measured once more")

    def _checking(self, check: Probe, sample: Sample, window: Window, limit: float) -> Step | None:
        before = check.n
        verdict = check.feed(sample, window)
        if verdict is None:
            return Step(check.n, "measured once more") if check.n != before else None
        self._check = None
        self.points += check.points[2:]
        self.fell = verdict.delta < -_FALL * window.chance
        return self._up(elasticity(self.points), limit) if verdict.accepted else self._flat_end()

    def _flat_end(self, share: float = 0.97, within: float = 0.12) -> Step:
        chosen = smallest_near_best(self.points, share, within)
        return Step(chosen.n, "throughput no longer rises with N", "flat")

    def _up(self, e: float | None, limit: float) -> Step:
        self._factor = self._next_factor(e)
        n = min(round(self._n * self._factor), math.floor(limit))
        if n <= self._n:
            return Step(min(self._n, math.floor(limit)), "N must not be larger", "limit")
        self._n, self._leg = n, None
        reason = "first step" if e is None else f"throughput rises with N (elasticity {e:.2f})"
        return Step(n, reason)

    @property
    def _flat_below(self) -> float:
        """Elasticity below which nothing more is to be gained."""
        return min(_FLAT, _GAIN / (self._spread * math.log(_NEAR)))

    def _is_flat(self, e: float | None) -> bool:
        if self._direct:
            return self._gains_less(self.points[-1], self._flat_below)
        best = max(p.x for p in self.points)
        self._flat = self._flat + 1 if e is not None and e < _FLAT else 0
        return self._flat >= 2 or self.points[-1].x < 0.93 * best

    def _gains_less(self, point: Point, than: float) -> bool:
        gained = self._gained(point)
        return gained is not None and gained < than

    def _gained(self, last: Point) -> float | None:
        """Elasticity between the last point and those a few steps below it."""
        least, most = math.exp(_FROM * self._wobble), math.exp(_TO * self._wobble)
        lower = [p for p in self.points if p.load <= last.load / least]
        below = [p for p in lower if p.load >= last.load / most] or lower[-1:]
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
            return math.pow(_NEAR, self._spread)
        return _FAR if early and e is not None and e >= _LINEAR else _FIRST

    def _new_leg(self, window: Window) -> Leg:
        d, poll = window.duration_s, window.poll_s
        if not self._direct:
            return Leg(self._n, 0.0, 0.5 * d)
        # The prompts of what is added are taken in before the others go on: that is the cost of
        # the step and not of the new N, so it is left out.
        settle = max(poll, 0.5 * (self._factor - 1) * d)
        return Leg(self._n, settle, poll * window.patience if self._near else 2 * poll)
