"""Keeps the KV cache about full where it is what limits, by its use now and what is foreseen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fanout_workers.auto.brake import Regime
from fanout_workers.auto.observe import Sample, mean
from fanout_workers.auto.window import Window

#: The KV use aimed at, and the band in which it is left alone.
_AIM, _LOW, _HIGH = 0.96, 0.935, 0.985
#: Below it the work has become shorter: there is room to ramp, and no need to creep.
_ROOM = 0.8
#: Requests longer by less than this are left to what the cache shows.
_LONGER = 1.15
#: Never to less than this part of N at once: a forecast may be wrong.
_DEEPEST = 0.3


@dataclass(frozen=True, slots=True)
class Steered:
    """N from now on; `ramp`: the cache has so much room that N is to be ramped up from there."""

    n: int
    reason: str
    ramp: bool = False


class Servo:
    """Steers by the use of the cache."""

    def __init__(self) -> None:
        self._steered_at = -math.inf

    def steered(self, at: float) -> None:
        """N was lowered because of the cache: its use follows later."""
        self._steered_at = at

    def foreseen(self, sample: Sample, window: Window, n: int) -> Steered | None:
        """N at once, when what is sent now is too long for it.

        What is in flight cannot be unsent, and N in flight drains while it comes back: a poll
        earlier is a few requests less that wait in a full cache.
        """
        kv = mean(s.kv for s in window.last(3 * window.poll_s))
        growth = window.growth
        if kv is None or growth < _LONGER or kv * growth <= _HIGH:
            return None
        if sample.at - self._steered_at < 0.6 * window.duration_s:
            return None
        to = round(n * max(_DEEPEST, _AIM / (kv * growth)))
        if to >= n:
            return None
        self._steered_at = sample.at
        words = (
            f"requests are {growth:.1f} times as long: KV use would be {100 * kv * growth:.0f} %"
        )
        return Steered(max(1, to), words)

    def check(
        self, sample: Sample, window: Window, n: int, regime: Regime | None
    ) -> Steered | None:
        """N from the use of the cache at present."""
        d = window.duration_s
        kv = mean(s.kv for s in window.last(max(3 * window.poll_s, 0.3 * d)))
        if kv is None or sample.at - self._steered_at < 0.6 * d:
            return None
        words = f"KV use is {100 * kv:.0f} %"
        if kv > _HIGH:
            to = round(n * max(0.93, _AIM / kv))
        elif regime == "kv" and kv * window.growth < _ROOM:
            self._steered_at = sample.at
            return Steered(n, words, ramp=True)
        elif regime == "kv" and kv < _LOW:
            to = round(n * min(1.08, _AIM / kv))
        else:
            return None
        self._steered_at = sample.at
        return None if to == n else Steered(to, words)
