"""RBRH: ramp, brake, refine, hold. One call of `Controller.observe` a poll, one decision a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fanout_workers.auto.brake import Brake, Braked, Regime
from fanout_workers.auto.decision import Decision, Phase, Remembered
from fanout_workers.auto.leg import Point
from fanout_workers.auto.levels import Levels
from fanout_workers.auto.observe import Observation, Sample, Window, mean, speed, throughput
from fanout_workers.auto.probe import GAIN, LOSS, Probe, Verdict
from fanout_workers.auto.ramp import Ramp

#: The KV use that is planned for, the one aimed at, and the band in which it is left alone.
_KV_PLAN, _KV_AIM, _KV_LOW, _KV_HIGH = 0.95, 0.96, 0.935, 0.985
#: Factors of the probes while refining, and while holding.
_REFINE, _HOLD = (1.12, 1.08), 1.08
_REST_D, _LONGEST_REST_D = 3.0, 40.0
#: Elasticity at which a probe upwards has found that the ramp ended too early.
_RISING = 0.5
#: How long the outcome of a turn counts, in D.
_REMEMBERED_D = 40.0
_FALL = 0.65
_TIMEOUTS = 0.05


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where N starts, and between what it stays."""

    start: int = 16
    least: int = 1
    most: int = 1024


class Controller:
    """Holds N at the smallest value that gives about all of the throughput.

    Args:
        bounds: where to start, and what not to leave.
        remembered: of an earlier run of the same work; then it starts at .7 of what was held.
        running: N that another controller holds at this moment: this one goes on from there.
    """

    def __init__(
        self, bounds: Bounds, remembered: Remembered | None = None, running: int | None = None
    ) -> None:
        self._bounds = bounds
        start = bounds.start if remembered is None else round(0.7 * remembered.n)
        self.n = self._within(start if running is None else running)
        self.phase: Phase = "ramp"
        self.regime: Regime | None = None
        self._window = Window()
        self._brake = Brake()
        self._cliff: tuple[int, float] | None = None
        self._ramp: Ramp | None = None
        self._probe: Probe | None = None
        self._steps: list[float] = []
        self._upward = True
        self._failed = 0
        self._given = 0.0
        self._rest_d = _REST_D
        self._rested_at = -math.inf
        self._level: float | None = None
        self._lowered_at = -math.inf
        self._not_before = -math.inf
        self._served_at = -math.inf
        self._draining = False
        self._near = remembered is not None
        self._points: list[Point] = []
        self._tops: list[int] = []
        self._turns: dict[tuple[int, int], list[tuple[float, float]]] = {}
        self._most: int | None = None
        self._levels = Levels()
        self._changed_at = -math.inf
        self._kv_bound = False
        self._direct: bool | None = None
        if running is not None and remembered is not None and remembered.phase != "ramp":
            self._start_refining()

    @property
    def memory(self) -> Remembered:
        """What to keep for a later run."""
        return Remembered(
            self._probe.base if self._probe else self.n,
            self._cliff[0] if self._cliff else None,
            self._window.mean_tokens,
            self.phase,
        )

    def observe(self, seen: Observation) -> Decision:
        """Take one poll; N from now on."""
        before, phase = self.n, self.phase
        sample = self._window.add(seen)
        noted, reason = False, "first look"
        if seen.overloads:
            noted, reason = self._refused(seen)
        elif sample is not None:
            noted, reason = self._advance(sample)
        changed = self.n != before or self.phase != phase
        return Decision(
            seen.at, self.n, before, self.phase, reason, changed or noted, self._inputs(seen)
        )

    # --- every poll

    def _advance(self, sample: Sample) -> tuple[bool, str]:
        direct = sample.rate is not None
        if self._direct is None or (direct != self._direct and self._ramp is None):
            self._direct = direct
        if self._timed_out(sample):
            return self._halve(sample, "requests time out")
        if self._draining:
            if sample.now > 1.03 * self.n + 1:
                return False, "draining"
            self._draining = False
        if braked := self._brake.check(sample, self._window, self.n):
            return self._come_down(braked, sample)
        if sample.now < 0.8 * self.n and sample.own < 0.8 * self.n:
            return False, "too little to send to learn from"
        if sample.at < self._not_before:
            return False, "the server asked to wait"
        self._note_level(sample)
        if self._probe is None and self.phase != "ramp":
            d = self._window.duration_s
            if (better := self._levels.better(self.n, sample.at, d)) is not None:
                reason = f"N {better} gave clearly more than {self.n}"
                self._set(better)
                self._start_holding(sample.at)
                return True, reason
        match self.phase:
            case "ramp":
                return self._ramp_on(sample)
            case "refine":
                return self._refine(sample)
            case _:
                return self._hold(sample)

    def _note_level(self, sample: Sample) -> None:
        d = self._window.duration_s
        settled = (0.3 if self._direct else 1.2) * d
        if sample.at - self._changed_at < settled:
            return
        x = throughput([sample]) if self._direct else throughput(self._window.last(0.7 * d))
        if x:
            self._levels.add(self.n, x, sample.dt_s, sample.at, d)

    def _set(self, n: int) -> None:
        n = self._within(n)
        if n != self.n and self._window.samples:
            self._changed_at = self._window.samples[-1].at
        if n < self.n:
            self._draining = True
        if n != self.n:
            self._brake.clear()
        self.n = n

    def _within(self, n: int) -> int:
        return max(self._bounds.least, min(self._bounds.most, n))

    # --- what brings N down at once

    def _refused(self, seen: Observation) -> tuple[bool, str]:
        self._not_before = max(self._not_before, seen.at + seen.retry_after_s)
        d = self._window.duration_s
        if seen.at < self._lowered_at + max(3 * self._window.poll_s, min(d, 60.0) / 2):
            return False, "the server refuses work; N has just been lowered"
        self._lowered_at = seen.at
        self._cliff = self.n, seen.at
        self._set(math.floor(0.75 * self.n))
        self._start_refining()
        return True, "the server refuses work"

    def _timed_out(self, sample: Sample) -> bool:
        if self._draining:  # they were sent before N came down
            self._served_at = sample.at
            return False
        since = max(self._served_at, sample.at - max(60.0, self._window.duration_s))
        lately = self._window.last(sample.at - since)
        timeouts, completed = sum(s.timeouts for s in lately), sum(s.completed for s in lately)
        return timeouts >= 3 and timeouts > _TIMEOUTS * (timeouts + completed)

    def _halve(self, sample: Sample, reason: str) -> tuple[bool, str]:
        self._served_at = sample.at
        self._levels.clear()
        self._turns.clear()
        self._cliff = self.n, sample.at
        held = self.n
        self._set(math.ceil(self.n / 2))
        self._start_ramp(most=held)
        return True, reason

    def _come_down(self, braked: Braked, sample: Sample) -> tuple[bool, str]:
        self.regime = braked.regime
        if braked.regime == "kv":
            self._cliff = self.n, sample.at
            self._lowered_at = sample.at
        self._set(braked.n)
        self._probe = None
        self._level = None
        if self.phase == "ramp" or braked.regime == "cap":
            self._start_holding(sample.at)
        return True, braked.reason

    # --- ramp

    def _start_ramp(
        self, near: bool = False, points: Sequence[Point] = (), most: int | None = None
    ) -> None:
        self.phase, self._ramp, self._probe, self._level = "ramp", None, None, None
        self._near, self._points, self._most = near, list(points), most
        self._brake.clear()

    def _ramp_on(self, sample: Sample) -> tuple[bool, str]:
        if self._ramp is None:
            self._ramp = Ramp(
                self.n, bool(self._direct), self._near, 4 * self._bounds.start, self._points
            )
        if self._brake.lasting:  # and the brake found no smaller N: this is the right one
            self.regime = "cap"
            self._start_holding(sample.at)
            return True, "requests queue for slots"
        if self._brake.pressed:
            return False, "requests queue in the server"
        limit = self._limit(sample)
        # What fell at that N was the server's or the work's doing: beyond it lies no known gain.
        limit = limit if self._most is None else min(limit, self._most)
        step = self._ramp.feed(sample, self._window, limit)
        if step is None:
            return False, "measuring"
        if not self._direct and (points := self._ramp.points):
            self._levels.add(
                points[-1].n, points[-1].x, 0.5 * self._window.duration_s, sample.at,
                self._window.duration_s,
            )  # fmt: skip
        self._set(step.n)
        if step.end == "limit" and self._kv_bound:
            self.regime = "kv"
            self._start_holding(sample.at)
        elif step.end == "limit":
            self._start_refining()
        elif step.end == "flat":
            self._tops.append(max(p.n for p in self._ramp.points))
            self._start_refining()
        return True, step.reason

    def _limit(self, sample: Sample) -> float:
        """The N that must not be exceeded, as far as that can be foreseen."""
        limit = float(self._bounds.most)
        lately = self._window.last(max(3 * self._window.poll_s, 0.1 * self._window.duration_s))
        kv, load = mean(s.kv for s in lately), mean(s.load for s in lately)
        own = mean(s.own for s in lately)
        if kv is not None and kv > 0.05 and load and own:
            bound = load * _KV_PLAN / kv - (load - own)
            self._kv_bound = bound < limit
            limit = min(limit, bound)
        elif self._cliff is not None:
            n, at = self._cliff
            if sample.at - at < 20 * self._window.duration_s:
                limit = min(limit, 0.96 * n)
        if self.regime == "cap" and (sample.waiting or 0.0) >= 1.0:
            limit = min(limit, float(self.n))
        return limit

    # --- refine and hold

    def _start_refining(self) -> None:
        self.phase, self._ramp, self._probe = "refine", None, None
        self._steps, self._upward, self._failed = list(_REFINE), True, 0
        self._given = 0.0

    def _start_holding(self, at: float) -> None:
        self.phase, self._ramp, self._probe = "hold", None, None
        self._rested_at = at
        self._failed = 0

    def _refine(self, sample: Sample) -> tuple[bool, str]:
        if self._probe is None:
            if not self._steps:
                self._start_holding(sample.at)
                return True, "nothing better was found near this N"
            if not self._begin_probe(sample, self._steps[0]):
                return self._probe_failed(sample, "no room")
            return False, "measuring"
        return self._probing(sample)

    def _hold(self, sample: Sample) -> tuple[bool, str]:
        if self._probe is not None:
            return self._probing(sample)
        if self._fell(sample):
            return self._halve(sample, "throughput fell by more than a third")
        if servo := self._servo(sample):
            return servo
        if sample.at - self._rested_at >= self._rest_d * self._window.duration_s:
            if self._begin_probe(sample, _HOLD):
                return False, "measuring"
            return self._probe_failed(sample, "no room above")
        return False, "holding"

    def _begin_probe(self, sample: Sample, factor: float) -> bool:
        if self._upward:
            other = max(self.n + 1, round(self.n * factor))
            if other > self._limit(sample):
                return False
            self._probe = Probe(
                self.n, other, GAIN, self._known(sample, self.n, other, 1), self.phase == "hold"
            )
        else:
            other = min(self.n - 1, round(self.n / factor))
            if other < self._bounds.least or other < 1:
                return False
            self._probe = Probe(
                self.n,
                other,
                -LOSS - self._given,
                self._known(sample, other, self.n, -1),
                self.phase == "hold",
            )
        return True

    def _known(self, sample: Sample, low: int, high: int, sign: int) -> list[float]:
        since = sample.at - _REMEMBERED_D * self._window.duration_s
        turns = self._turns.get((low, high), [])
        return [sign * delta for at, delta in turns if at >= since]

    def _probing(self, sample: Sample) -> tuple[bool, str]:
        probe = self._probe
        assert probe is not None  # noqa: S101
        if self._brake.pressed and self.n > probe.base:
            self._set(probe.base)
            return self._probe_failed(sample, "requests queue in the server")
        verdict = probe.feed(sample, self._window)
        if verdict is None:
            self._set(probe.n)
            return False, "measuring"
        return self._judged(probe, verdict, sample)

    def _judged(self, probe: Probe, verdict: Verdict, sample: Sample) -> tuple[bool, str]:
        sign = 1 if probe.other > probe.base else -1
        pair = min(probe.base, probe.other), max(probe.base, probe.other)
        self._turns.setdefault(pair, []).extend((sample.at, sign * d) for d in probe.deltas)
        words = f"N {probe.other} against {probe.base}: {100 * verdict.delta:+.1f} % tokens/s"
        if not verdict.accepted:
            self._set(probe.base)
            return self._probe_failed(sample, words)
        self._set(probe.other)
        self._given = 0.0 if self._upward else self._given + min(0.0, verdict.delta)
        self._probe, self._failed = None, 0
        self._rested_at, self._rest_d = sample.at, _REST_D
        rising = verdict.delta > _RISING * math.log(probe.other / probe.base)
        # A ramp may end too early by bad luck, but not twice near the same place.
        tops = sum(0.8 * probe.other <= top for top in self._tops)
        if self._direct and self._upward and rising and tops < 2:
            self._start_ramp(near=True, points=probe.points)
        return True, words

    def _probe_failed(self, sample: Sample, words: str) -> tuple[bool, str]:
        self._probe = None
        self._turn()
        self._failed += 1
        self._rested_at = sample.at
        if self._failed >= 2:
            self._failed = 0
            if self.phase == "refine":
                self._steps.pop(0)
            else:
                self._rest_d = min(2 * self._rest_d, _LONGEST_REST_D)
        return True, words

    def _turn(self) -> None:
        self._upward = not self._upward

    def _fell(self, sample: Sample) -> bool:
        d = self._window.duration_s
        span = max(4 * self._window.poll_s, (0.3 if self._direct else 1.0) * d)
        x = speed([s for s in self._window.last(span) if s.own >= 0.8 * self.n])
        if x is None:
            return False
        if self._level is None:
            if sample.at - self._rested_at > max(span, d):
                self._level = x
            return False
        if x < _FALL * self._level:
            return True
        self._level += (x - self._level) * min(1.0, sample.dt_s / max(2 * d, sample.dt_s))
        return False

    def _servo(self, sample: Sample) -> tuple[bool, str] | None:
        """Keep the KV cache about full where it is what limits."""
        d = self._window.duration_s
        lately = self._window.last(max(3 * self._window.poll_s, 0.3 * d))
        kv = mean(s.kv for s in lately)
        if kv is None or sample.at - self._lowered_at < 0.6 * d:
            return None
        if kv > _KV_HIGH:
            n = round(self.n * max(0.93, _KV_AIM / kv))
        elif self.regime == "kv" and kv < _KV_LOW:
            n = round(self.n * min(1.08, _KV_AIM / kv))
        else:
            return None
        self._lowered_at = sample.at
        if n == self.n:
            return None
        self._set(n)
        return True, f"KV use is {100 * kv:.0f} %"

    def _inputs(self, seen: Observation) -> dict[str, float]:
        window = self._window
        found: dict[str, float | None] = {
            "in_flight": seen.in_flight,
            "duration_s": round(window.duration_s, 1),
            "mean_tokens": window.mean_tokens and round(window.mean_tokens, 1),
            "timeouts": seen.timeouts or None,
            "overloads": seen.overloads or None,
        }
        if x := throughput(window.last(4 * window.poll_s)):
            found["tokens_per_s"] = round(x, 1)
        if seen.gauges is not None:
            gauges = seen.gauges
            found |= {"running": gauges.running, "waiting": gauges.waiting}
            found["kv"] = None if gauges.kv is None else round(gauges.kv, 3)
        if seen.streams is not None:
            found["stalled"] = seen.streams.stalled + seen.streams.unstarted
        if self._cliff is not None:
            found["cliff"] = self._cliff[0]
        return {name: float(value) for name, value in found.items() if value is not None}
