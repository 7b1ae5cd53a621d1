"""RBRH: ramp, brake, refine, hold. One call of `Controller.observe` a poll, one decision a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fanout_workers.auto.alarm import Alarm
from fanout_workers.auto.brake import Brake, Braked, Regime, fair_share
from fanout_workers.auto.ceiling import Ceiling
from fanout_workers.auto.decision import Decision, Phase, Remembered
from fanout_workers.auto.leg import Point
from fanout_workers.auto.levels import Levels
from fanout_workers.auto.observe import Observation, Sample, throughput
from fanout_workers.auto.probe import Probe, Verdict
from fanout_workers.auto.ramp import Ramp
from fanout_workers.auto.search import Search
from fanout_workers.auto.servo import Servo, Steered
from fanout_workers.auto.window import Window
from fanout_workers.auto.work import Work

#: Where a later run of the same work begins, as a part of the N that was held.
_WARM = 0.7
#: Work that is longer or shorter by less than this is the same.
_SAME = 1.25
#: D after a ramp from which on the replies that end are those of all lengths.
_STEADY_D = 1.5


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
        start = bounds.start if remembered is None else round(_WARM * remembered.n)
        self.n = self._within(start if running is None else running)
        self.phase: Phase = "ramp"
        self.regime: Regime | None = None
        self._remembered = remembered
        self._window = Window()
        self._brake, self._alarm, self._servo = Brake(), Alarm(), Servo()
        self._ceiling = Ceiling(bounds.most)
        self._work = Work(remembered if running is None else None)
        self._levels, self._search = Levels(), Search()
        self._ramp: Ramp | None = None
        self._lowered_at = self._not_before = self._changed_at = self._ramped_at = -math.inf
        self._draining = False
        # What the next ramp begins with.
        self._near = remembered is not None
        self._points: list[Point] = []
        #: The largest N at which a ramp saw that more gives nothing. Below it no other ramp begins:
        #: each may go a step or two beyond what is best.
        self._top = 0
        self._most: int | None = None
        self._direct: bool | None = None
        if running is not None and remembered is not None and remembered.phase != "ramp":
            self._start_refining()

    @property
    def memory(self) -> Remembered:
        """What to keep for a later run."""
        return Remembered(
            self._search.probe.base if self._search.probe else self.n,
            self._ceiling.cliff,
            self._window.mean_tokens,
            self.phase,
            self._window.prompt_tokens,
        )

    def observe(self, seen: Observation) -> Decision:
        """Take one poll; N from now on."""
        before, phase = self.n, self.phase
        if self._remembered is not None and self._remembered.cliff is not None:
            self._ceiling.was_too_much(self._remembered.cliff, seen.at)
        self._remembered = None
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
        if self._draining:  # what times out was sent before N came down
            self._alarm.calm(sample.at)
        elif self._alarm.timed_out(sample, self._window):
            return self._halve(sample, "requests time out")
        if self._draining:
            if sample.now > 1.03 * self.n + 1:
                return False, "draining"
            self._draining = False
        if braked := self._brake.check(sample, self._window, self.n):
            return self._come_down(braked, sample)
        if steered := self._servo.foreseen(sample, self._window, self.n):
            return self._steer(steered, sample)
        if sample.now < 0.8 * self.n and sample.own < 0.8 * self.n:
            return False, "too little to send to learn from"
        if (longer := self._work.longer(self._window)) and self._rescale(longer, sample):
            return True, f"requests are {longer:.1f} times as long as remembered"
        if self.phase == "ramp":
            self._ramped_at = sample.at
        steady = sample.at - self._ramped_at >= _STEADY_D * self._window.duration_s
        if self._work.changed(self._window, steady):
            self._window.lengths.renew()
            self._forget()
        if sample.at < self._not_before:
            return False, "the server asked to wait"
        self._note_level(sample)
        if self._search.probe is None and self.phase != "ramp":
            d, variance = self._window.duration_s, self._window.scatter**2 * self._window.poll_s
            if (better := self._levels.better(self.n, sample.at, d, variance)) is not None:
                # At another time: the server may have been faster then.
                self._levels.clear()
                self._search.compare(self.n, better)
                return True, f"N {better} gave clearly more than {self.n}: measured in turns"
        match self.phase:
            case "ramp":
                return self._ramp_on(sample)
            case "refine":
                return self._refine(sample)
            case _:
                return self._hold(sample)

    def _rescale(self, longer: float, sample: Sample) -> bool:
        """The work is not what is remembered: longer requests fill a cache with fewer of them."""
        if 1 / _SAME < longer < _SAME:
            return False
        if (cliff := self._ceiling.cliff) is not None:
            self._ceiling.was_too_much(max(1, round(cliff / longer)), sample.at)
        if longer < 1 or self.phase != "ramp":
            return False
        self._set(math.ceil(self.n / longer))
        self._start_ramp(near=True)
        return True

    def _note_level(self, sample: Sample) -> None:
        d = self._window.duration_s
        settled = (0.3 if self._direct else 1.2) * d
        if sample.at - self._changed_at < settled:
            return
        x = throughput([sample]) if self._direct else throughput(self._window.last(0.7 * d))
        if x:
            self._levels.add(self.n, x, sample.dt_s, sample.at, d)

    def _forget(self) -> None:
        """The work or the server has changed: what was learnt of each N holds no more."""
        self._levels.clear()
        self._search.forget()
        self._top = 0

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
        self._ceiling.was_too_much(self.n, seen.at)
        self._set(math.floor(0.75 * self.n))
        self._start_refining()
        return True, "the server refuses work"

    def _halve(self, sample: Sample, reason: str) -> tuple[bool, str]:
        self._alarm.calm(sample.at)
        self._forget()
        self._ceiling.was_too_much(self.n, sample.at)
        held = self.n
        self._set(math.ceil(self.n / 2))
        self._start_ramp(most=held)
        return True, reason

    def _come_down(self, braked: Braked, sample: Sample) -> tuple[bool, str]:
        self.regime = braked.regime
        if braked.regime == "kv":
            self._ceiling.was_too_much(self.n, sample.at)
            self._servo.steered(sample.at)
        self._set(braked.n)
        self._search.probe = None
        self._alarm.reset()
        if self.phase == "ramp" or braked.regime == "cap":
            self._start_holding(sample.at)
        return True, braked.reason

    def _steer(self, steered: Steered, sample: Sample) -> tuple[bool, str]:
        self._set(steered.n)
        if steered.ramp:
            self._start_ramp(near=True)
        elif self.phase != "hold" or self._search.probe is not None:
            self._start_holding(sample.at)
        self.regime = "kv"
        return True, steered.reason

    # --- ramp

    def _start_ramp(
        self, near: bool = False, points: Sequence[Point] = (), most: int | None = None
    ) -> None:
        self.phase, self._ramp, self._search.probe = "ramp", None, None
        self._alarm.reset()
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
        if step.end == "limit" and self._ceiling.kv_bound:
            self.regime = "kv"
            self._start_holding(sample.at)
        elif step.end == "limit":
            self._start_refining()
        elif step.end == "flat":
            self._top = max(self._top, *(p.n for p in self._ramp.points))
            self._search.fell_at = self._top if self._ramp.fell else 0
            self._start_refining()
        return True, step.reason

    def _limit(self, sample: Sample) -> float:
        return self._ceiling.limit(sample, self._window, self.n, self.regime)

    # --- refine and hold

    def _start_refining(self) -> None:
        self.phase, self._ramp = "refine", None
        self._search.refine()

    def _start_holding(self, at: float) -> None:
        self.phase, self._ramp = "hold", None
        self._search.hold(at)

    def _refine(self, sample: Sample) -> tuple[bool, str]:
        if self._search.probe is not None:
            return self._probing(self._search.probe, sample)
        if not self._search.steps:
            self._start_holding(sample.at)
            return True, "nothing better was found near this N"
        return self._begin_probe(sample)

    def _hold(self, sample: Sample) -> tuple[bool, str]:
        search, window = self._search, self._window
        if search.probe is not None:
            return self._probing(search.probe, sample)
        rested_s = search.rested_s(sample.at)
        if self._alarm.fell(sample, window, self.n, bool(self._direct), rested_s):
            return self._halve(sample, "throughput fell by more than a third")
        if steered := self._servo.check(sample, window, self.n, self.regime):
            return self._steer(steered, sample)
        if search.due(sample.at, window.duration_s):
            return self._begin_probe(sample)
        return False, "holding"

    def _begin_probe(self, sample: Sample) -> tuple[bool, str]:
        limit = self._limit(sample)
        least = max(self._bounds.least, fair_share(sample, self._window))
        if self._search.begin(self.n, least, limit, sample.at, self._window):
            return False, "measuring"
        self._search.failed(sample.at)
        return True, "no room"

    def _probing(self, probe: Probe, sample: Sample) -> tuple[bool, str]:
        if self._brake.pressed and self.n > probe.base and not probe.settling:
            self._set(probe.base)
            self._search.failed(sample.at)
            return True, "requests queue in the server"
        verdict = probe.feed(sample, self._window)
        if verdict is None:
            self._set(probe.n)
            return False, "measuring"
        return self._judged(probe, verdict, sample)

    def _judged(self, probe: Probe, verdict: Verdict, sample: Sample) -> tuple[bool, str]:
        words = f"N {probe.other} against {probe.base}: {100 * verdict.delta:+.1f} % tokens/s"
        self._set(probe.other if verdict.accepted else probe.base)
        rising = self._search.judged(probe, verdict, sample.at)
        if rising and self._direct and probe.other > self._top:
            self._start_ramp(near=True, points=probe.points)
        return True, words

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
        if self._ceiling.cliff is not None:
            found["cliff"] = self._ceiling.cliff
        if (growth := window.growth) != 1.0:
            found["growth"] = round(growth, 2)
        return {name: float(value) for name, value in found.items() if value is not None}
