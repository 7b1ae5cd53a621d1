"""A probe: the present N against another one, in turns, so that drift falls out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fanout_workers.auto.leg import Leg, Point
from fanout_workers.auto.observe import Sample, Window

#: A leg's throughput scatters by this share of it, until more is known.
_SCATTER = 0.035
#: Standard errors that settle it before the last turn.
_SURE = 1.6
#: Turns at the other N, at most.
_TURNS = 4
#: A gain that is worth a larger N, and a loss that a smaller N may cost.
GAIN, LOSS = 0.02, 0.015


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the probe ended: whether to keep the other N, and what it gave as ln of the ratio."""

    accepted: bool
    delta: float
    turns: int


@dataclass(slots=True)
class Probe:
    """`base` against `other`, in turns: A B A, or A B A B A … until it is clear which is better.

    Args:
        base: the N held.
        other: the N to try.
        least: the smallest ln(X other / X base) at which `other` is kept.
        known: what earlier probes of the same two gave, as ln(X other / X base).
        patient: whether there is time to let each turn settle for half of D.
        turns: at the other N, at most.
    """

    base: int
    other: int
    least: float
    known: Sequence[float] = ()
    patient: bool = False
    turns: int = _TURNS
    points: list[Point] = field(default_factory=list)
    deltas: list[float] = field(default_factory=list)
    _leg: Leg | None = None

    @property
    def n(self) -> int:
        """N to be set now."""
        return self.base if len(self.points) % 2 == 0 else self.other

    def feed(self, sample: Sample, window: Window) -> Verdict | None:
        """Take a poll at `n`; the verdict when there is one."""
        if self._leg is None:
            d, poll = window.duration_s, window.poll_s
            direct = sample.rate is not None
            # The prompts of what is added are taken in first: the cost of the step, not of the N.
            # Completions lag behind by one D.
            settle, measure = (0.15 * d, 0.4 * d) if direct else (0.8 * d, 0.7 * d)
            if self.patient and direct:
                settle, measure = 0.5 * d, 0.5 * d
            if not self.points and direct:
                settle = 0.0
            self._leg = Leg(self.n, settle, max(4 * poll, measure))
        if not self._leg.feed(sample):
            return None
        point = self._leg.point
        assert point is not None  # noqa: S101 - feed() said so
        self.points.append(point)
        self._leg = None
        return self._judge()

    def _judge(self) -> Verdict | None:
        logs = [math.log(p.x) for p in self.points]
        if len(logs) < 3:
            # One turn that is far worse needs no second look.
            if len(logs) == 2 and logs[1] - logs[0] < min(self.least, 0.0) - 4 * _SCATTER:
                return Verdict(False, logs[1] - logs[0], 1)
            return None
        if len(logs) % 2 == 0:
            return None
        self.deltas = [
            logs[i] - (logs[i - 1] + logs[i + 1]) / 2 for i in range(1, len(logs) - 1, 2)
        ]
        every = [*self.known, *self.deltas]
        delta = sum(every) / len(every)
        error = 1.22 * _SCATTER / math.sqrt(len(every))
        if len(self.deltas) >= self.turns or abs(delta - self.least) > _SURE * error:
            return Verdict(delta > self.least, delta, len(every))
        return None
