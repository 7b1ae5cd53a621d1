"""The search near an N: which probe is next, and what earlier ones of the same two N gave."""

from __future__ import annotations

import math

from fanout_workers.auto.probe import GAIN, LOSS, Probe, Verdict
from fanout_workers.auto.window import Window

#: Factors of the probes while refining, and while holding: to the power of `Window.spread`, as all
#: that follow.
_REFINE, _HOLD = (1.12, 1.08), 1.08
#: A probe upwards that gains something, but not enough to tell from the noise, is followed by one
#: twice as wide (in ln N), up to this factor: on a curve that rises slowly, small steps never show
#: a gain, and together they are worth many percent. Only where prompts are counted: of what has
#: just been added no reply ends for one D, so that fewer prompts are taken in, and a large step
#: seems to gain what that saves.
_WIDEST = 1.3
#: Factor of a probe beyond what a ramp has seen to be no better.
_BEYOND = 1.025
#: D between two probes while holding, at first; twice as long whenever nothing is found.
_REST_D, _LONGEST_REST_D = 3.0, 40.0
#: How long the outcome of a turn counts, in D.
_REMEMBERED_D = 40.0
#: Elasticity at which a probe upwards has found that the ramp ended too early, and turns that say
#: so where its gain is too little for a larger N.
_RISING, _SURE_TURNS = 0.25, 8


class Search:
    """Probes up and down in turn.

    Attributes:
        probe: the one that runs.
        steps: factors of the probes that refining has before it.
        fell_at: N up to which a ramp went, where it ended because throughput fell; 0 where it did
            not. What lies beyond is known to be no better.
    """

    def __init__(self) -> None:
        self.probe: Probe | None = None
        self.steps: list[float] = []
        self.fell_at = 0
        self._upward = True
        self._failed = 0
        self._given = 0.0
        self._reach, self._hope = 1.0, 0.0
        self._may_widen = False
        self._spread = 1.0
        self._rest_d = _REST_D
        self._rested_at = -math.inf
        self._turns: dict[tuple[int, int], list[tuple[float, float]]] = {}

    def refine(self) -> None:
        """Begin anew with large steps, upwards."""
        self.probe = None
        self.steps, self._upward, self._failed = list(_REFINE), True, 0
        self._given = 0.0
        self._narrow()

    def hold(self, at: float) -> None:
        """Rest from now on."""
        self.probe, self.steps = None, []
        self._rested_at, self._failed = at, 0
        self._narrow()

    def forget(self) -> None:
        """The work or the server has changed: nothing of it holds any more."""
        self._turns.clear()
        self._rest_d = _REST_D
        self.fell_at = 0

    def rested_s(self, at: float) -> float:
        """Seconds since the last probe."""
        return at - self._rested_at

    def due(self, at: float, duration_s: float) -> bool:
        """Whether it is time for a probe while holding."""
        return self.rested_s(at) >= self._rest_d * duration_s

    def begin(self, n: int, least: int, limit: float, at: float, window: Window) -> bool:
        """Begin the next probe from `n`; False if there is no room for it."""
        patient = not self.steps
        self._spread = window.spread
        factor = (self.steps[0] if self.steps else _HOLD) ** self._spread
        since = at - _REMEMBERED_D * window.duration_s
        if self._upward:
            self._may_widen = window.counted
            wide = math.floor(min(n * self._reach, limit))
            other = max(n + 1, round(min(max(n * factor, wide), self._furthest(n))))
            if other > limit:
                return False
            self.probe = Probe(n, other, GAIN, self._known(since, n, other, 1), patient)
            return True
        other = min(n - 1, round(n / factor))
        if other < max(least, 1):
            return False
        known = self._known(since, other, n, -1)
        self.probe = Probe(n, other, -LOSS - self._given, known, patient)
        return True

    def compare(self, n: int, smaller: int) -> None:
        """Look in turns at a smaller N that seems to have given more."""
        self._upward = False
        self.probe = Probe(n, smaller, 0.0)

    def _furthest(self, n: int) -> float:
        """Where a probe upwards from `n` ends: a very small step beyond what a ramp has seen."""
        if not self.fell_at or (n * _HOLD > self.fell_at and self._reach > 1.0):
            return math.inf
        return max(n * math.pow(_BEYOND, self._spread), self.fell_at)

    def judged(self, probe: Probe, verdict: Verdict, at: float) -> bool:
        """Take a verdict; whether it found throughput to rise steeply with N."""
        sign = 1 if probe.other > probe.base else -1
        pair = min(probe.base, probe.other), max(probe.base, probe.other)
        self._turns.setdefault(pair, []).extend((at, sign * delta) for delta in probe.deltas)
        if self._upward and not verdict.accepted and self._widen(probe, verdict):
            self.probe, self._rested_at = None, at
            return False
        steep = verdict.delta > _RISING * math.log(probe.other / probe.base)
        if not verdict.accepted:
            undone = steep and self._upward and probe.other > self.fell_at
            if undone and verdict.turns >= _SURE_TURNS:
                self.fell_at = 0  # what the ramp saw holds no more
            self.failed(at)
            return False
        # Small losses do not add up: they count from where it began.
        self._given = 0.0 if self._upward else self._given + min(0.0, verdict.delta)
        self.probe, self._failed = None, 0
        self._narrow()
        self._rested_at, self._rest_d = at, _REST_D
        return self._upward and steep

    def _widen(self, probe: Probe, verdict: Verdict) -> bool:
        """Whether the next probe upwards is to be a wider one."""
        factor = probe.other / probe.base
        widest = _WIDEST**self._spread
        if verdict.delta <= self._hope or factor > widest / 1.05 or not self._may_widen:
            return False
        self._reach = min(widest, factor**2)
        self._hope = verdict.delta / 2
        return True

    def _narrow(self) -> None:
        """The next probe upwards is a small one again."""
        self._reach, self._hope = 1.0, 0.0

    def failed(self, at: float) -> None:
        """Nothing was found in this direction."""
        self.probe = None
        self._narrow()
        self._upward = not self._upward
        self._failed += 1
        self._rested_at = at
        if self._failed >= 2:
            self._failed = 0
            if self.steps:
                self.steps.pop(0)
            else:
                self._rest_d = min(2 * self._rest_d, _LONGEST_REST_D)

    def _known(self, since: float, low: int, high: int, sign: int) -> list[float]:
        return [sign * delta for at, delta in self._turns.get((low, high), []) if at >= since]
