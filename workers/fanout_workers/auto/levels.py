"""Throughput at each N that was held for a while: against creeping away from what was better."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Throughput over this part of D scatters by that share of it.
_UNIT_D, _SCATTER = 0.4, 0.035
#: How long a level counts, in D.
_KEPT_D = 40.0
#: For how long the present N has to have been looked at, and another one, in D: of many that were
#: passed by in a moment, one always seems to have been better.
_LEAST_D, _LEAST_OTHER_D = 1.5, 0.5


@dataclass(slots=True)
class _Level:
    """Mean of ln X, over `seconds` of looking at it; last at `at`."""

    seconds: float
    log_x: float
    at: float


class Levels:
    """What each N has given."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}

    def clear(self) -> None:
        """The work or the server has changed: nothing of it holds any more."""
        self._levels.clear()

    def add(self, n: int, x: float, seconds: float, at: float, duration_s: float) -> None:
        """`x` tokens/s were measured at `n` for so many seconds."""
        level = self._levels.setdefault(n, _Level(0.0, 0.0, at))
        level.seconds = min(level.seconds, 10 * duration_s) + seconds
        level.log_x += (math.log(x) - level.log_x) * seconds / level.seconds
        level.at = at

    def better(self, n: int, at: float, duration_s: float, variance: float) -> int | None:
        """A smaller N that has clearly given more than `n`; the smallest near the best of them.

        Args:
            n: the present N.
            at: now.
            duration_s: D.
            variance: of ln X over one second, by chance alone.
        """
        here = self._levels.get(n)
        if here is None or here.seconds < _LEAST_D * duration_s:
            return None
        clear = {
            m: level.log_x
            for m, level in self._levels.items()
            if m < n
            and level.seconds >= _LEAST_OTHER_D * duration_s
            and at - level.at < _KEPT_D * duration_s
            and level.log_x - here.log_x > 0.02 + 1.5 * _error(here, level, duration_s, variance)
        }
        best = max(clear.values(), default=0.0)
        return min((m for m, log_x in clear.items() if log_x >= best - 0.03), default=None)


def _error(one: _Level, other: _Level, duration_s: float, variance: float) -> float:
    variance += _SCATTER**2 * _UNIT_D * duration_s
    return math.sqrt(variance / one.seconds + variance / max(other.seconds, 1e-9))
