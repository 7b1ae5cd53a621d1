"""What says that the server or the work has changed: timeouts, and a fall of its speed."""

from __future__ import annotations

import math

from fanout_workers.auto.observe import Sample, speed
from fanout_workers.auto.window import Window

#: Throughput that is below this part of what it was, and timeouts that are above that of replies.
_FALL, _TIMEOUTS = 0.65, 0.05


class Alarm:
    """Watches timeouts and speed."""

    def __init__(self) -> None:
        self._served_at = -math.inf
        self._level: float | None = None

    def calm(self, at: float) -> None:
        """Timeouts until now are accounted for: N has come down."""
        self._served_at = at

    def reset(self) -> None:
        """N has changed for good: the speed is another one."""
        self._level = None

    def timed_out(self, sample: Sample, window: Window) -> bool:
        """Whether too many requests are given up."""
        since = max(self._served_at, sample.at - max(60.0, window.duration_s))
        lately = window.last(sample.at - since)
        timeouts, completed = sum(s.timeouts for s in lately), sum(s.completed for s in lately)
        return timeouts >= 3 and timeouts > _TIMEOUTS * (timeouts + completed)

    def fell(self, sample: Sample, window: Window, n: int, direct: bool, rested_s: float) -> bool:
        """Whether the server has become slower by more than a third.

        It is the speed beside prompts that counts: longer ones make fewer tokens, at any N.
        """
        d = window.duration_s
        span = max(4 * window.poll_s, (0.3 if direct else 1.0) * d)
        x = speed([s for s in window.last(span) if s.own >= 0.8 * n])
        if x is None:
            return False
        if self._level is None:
            if rested_s > max(span, d):
                self._level = x
            return False
        if x < _FALL * self._level:
            return True
        self._level += (x - self._level) * min(1.0, sample.dt_s / max(2 * d, sample.dt_s))
        return False
