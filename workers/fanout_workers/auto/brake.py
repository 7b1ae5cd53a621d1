"""The brake: what the server shows when N is too large, at every poll. It only ever lowers N."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fanout_workers.auto.observe import Sample, mean
from fanout_workers.auto.window import Window

#: `kv`: the KV cache is full and requests are preempted. `cap`: the server's own slots are.
Regime = Literal["kv", "cap"]

#: Polls in a row that have to show it: one alone may be a burst of arrivals.
_STREAK = 3
_FULL_KV = 0.9


@dataclass(frozen=True, slots=True)
class Braked:
    """N is to come down to `n`, for what the reason says."""

    n: int
    regime: Regime
    reason: str


class Brake:
    """Counts polls with a queue in the server, and preemptions."""

    def __init__(self) -> None:
        self._streak: list[Sample] = []

    def clear(self) -> None:
        """Forget what was seen: N has changed."""
        self._streak.clear()

    @property
    def pressed(self) -> bool:
        """Whether the last poll showed a queue: no time to raise N."""
        return bool(self._streak)

    @property
    def lasting(self) -> bool:
        """Whether it has been so for long enough to be the server's state."""
        return len(self._streak) >= _STREAK

    def check(self, sample: Sample, window: Window, n: int) -> Braked | None:
        """Whether N has to come down now."""
        if sample.waiting is None or sample.running is None:
            return None
        if sample.waiting >= max(2.0, 0.05 * (sample.running + sample.waiting)):
            self._streak.append(sample)
        else:
            self._streak.clear()
        if len(self._streak) >= _STREAK:
            return self._queued(self._streak[-_STREAK:], window, n)
        return self._thrashing(window, n)

    def _queued(self, seen: list[Sample], window: Window, n: int) -> Braked | None:
        running = mean(s.running for s in seen) or 0.0
        kv = mean(s.kv for s in seen)
        stalled = kv is None and sum(s.preempted for s in seen) > 0.5 * sum(
            s.waiting or 0.0 for s in seen
        )
        if stalled or (kv is not None and kv >= _FULL_KV):
            return _lowered(_clamped(running, n), n, "kv", "requests queue, the KV cache is full")
        # A tenth more than run: a slot that falls free finds a request in the server's queue.
        least = fair_share(seen[-1], window)
        return _lowered(max(round(1.1 * running + 1), least), n, "cap", "requests queue for slots")

    def _thrashing(self, window: Window, n: int) -> Braked | None:
        lately = window.last(max(3 * window.poll_s, 0.25 * window.duration_s))
        if any(s.kv is None for s in lately):
            return None
        preempted, completed = sum(s.preempted for s in lately), sum(s.completed for s in lately)
        if preempted < 3 or preempted <= 0.5 * completed:
            return None
        running = mean(s.running for s in lately) or 0.0
        return _lowered(_clamped(running, n), n, "kv", "requests are preempted")


def fair_share(sample: Sample, window: Window) -> int:
    """N that does not give way to another client; 0 where there is none, or no queue.

    It is half of what runs of its own and is there of the others. Where they fill the server, a
    smaller N costs no throughput: nothing else would end the way down.
    """
    if not sample.running or not sample.waiting or window.others < 0.1 * (sample.running + 1):
        return 0
    return round(0.5 * min(sample.running + window.others, sample.load))


def _clamped(running: float, n: int) -> int:
    return round(min(max(running, 0.7 * n), 0.93 * n))


def _lowered(to: int, n: int, regime: Regime, reason: str) -> Braked | None:
    return Braked(max(1, to), regime, reason) if to < n else None
