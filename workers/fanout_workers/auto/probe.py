"""A probe: the present N against another one, in turns, so that drift falls out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fanout_workers.auto.leg import Leg, Point
from fanout_workers.auto.observe import Sample
from fanout_workers.auto.window import WOBBLE, Window

#: A leg's throughput scatters by this share of it, until more is known.
_SCATTER = 0.025
#: With completions alone, and as a multiple where the server wobbles more than usual.
_SCATTER_SLOW, _MOST_SCATTER = 0.035, 3.0
#: One stretch where tokens are seen as they come, in polls and in D: it settles, and is measured.
#: Several short ones tell more than a long one, for the speed wanders less between them. Where
#: polls differ by chance, it is measured for longer (`Window.patience`).
_SETTLE, _MEASURE, _PATIENT_D = (1, 0.05), (1, 0.05), 0.15
#: Standard errors that settle it before the last turn.
_SURE = 1.6
#: Turns at the other N, at most.
_TURNS = 4
#: A gain that is worth a larger N, and a loss that a smaller N may cost.
GAIN, LOSS = 0.02, 0.01


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
        patient: whether there is time for longer turns.
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
    _scatter: float = _SCATTER

    @property
    def n(self) -> int:
        """N to be set now."""
        return self.base if len(self.points) % 2 == 0 else self.other

    @property
    def settling(self) -> bool:
        """Whether N has just been changed: what has been added may still queue."""
        return self._leg is None or self._leg.settling

    def feed(self, sample: Sample, window: Window) -> Verdict | None:
        """Take a poll at `n`; the verdict when there is one."""
        direct = sample.rate is not None
        if self._leg is None:
            self._leg = self._new_leg(window, direct)
        if not self._leg.feed(sample):
            return None
        point = self._leg.point
        assert point is not None  # noqa: S101 - feed() said so
        self.points.append(point)
        self._leg = None
        wobbles = min(_MOST_SCATTER, max(1.0, window.wobble / WOBBLE))
        self._scatter = _SCATTER * wobbles if direct else _SCATTER_SLOW
        return self._judge()

    def _new_leg(self, window: Window, direct: bool) -> Leg:
        d, poll = window.duration_s, window.poll_s
        if not direct:  # completions lag behind by one D
            return Leg(self.n, 0.8 * d, max(4 * poll, 0.7 * d))
        settle = max(_SETTLE[0] * poll, _SETTLE[1] * d)
        measure = max(_MEASURE[0] * poll, _MEASURE[1] * d) * window.patience
        if self.patient:
            settle, measure = _PATIENT_D * d, max(measure, _PATIENT_D * d)
        if not self.points:
            settle = 0.0
        return Leg(self.n, settle, measure)

    def _judge(self) -> Verdict | None:
        logs = [math.log(p.x) for p in self.points]
        if len(logs) < 3:
            # One turn that is far worse needs no second look.
            if len(logs) == 2 and logs[1] - logs[0] < min(self.least, 0.0) - 4 * self._scatter:
                return Verdict(False, logs[1] - logs[0], 1)
            return None
        if len(logs) % 2 == 0:
            return None
        self.deltas = [
            logs[i] - (logs[i - 1] + logs[i + 1]) / 2 for i in range(1, len(logs) - 1, 2)
        ]
        every = [*self.known, *self.deltas]
        delta = sum(every) / len(every)
        error = 1.22 * self._scatter / math.sqrt(len(every))
        if len(self.deltas) >= self.turns or abs(delta - self.least) > _SURE * error:
            return Verdict(delta > self.least, delta, len(every))
        return None
