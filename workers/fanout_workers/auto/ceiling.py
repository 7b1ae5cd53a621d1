"""The N that must not be exceeded, as far as that can be foreseen."""

from __future__ import annotations

from fanout_workers.auto.brake import Regime
from fanout_workers.auto.observe import Sample, mean
from fanout_workers.auto.window import Window

#: The KV use that is planned for.
_KV_PLAN = 0.95
#: Where the cache is not seen: how near to an N that was too much, and for how many D.
_NEAR_CLIFF, _CLIFF_D = 0.96, 20.0


class Ceiling:
    """What is known of N that are too large.

    Attributes:
        cliff: the N that was too much at last.
        kv_bound: whether the KV cache is what limits.
    """

    def __init__(self, most: int) -> None:
        self.cliff: int | None = None
        self.kv_bound = False
        self._most = most
        self._at = 0.0

    def was_too_much(self, n: int, at: float) -> None:
        """N was too large."""
        self.cliff, self._at = n, at

    def limit(self, sample: Sample, window: Window, n: int, regime: Regime | None) -> float:
        """The largest N to try."""
        limit = float(self._most)
        lately = window.last(max(3 * window.poll_s, 0.1 * window.duration_s))
        kv, load = mean(s.kv for s in lately), mean(s.load for s in lately)
        own = mean(s.own for s in lately)
        if kv is not None and kv > 0.05 and load and own:
            # What is sent now may be longer than what is in flight.
            bound = load * _KV_PLAN / (kv * max(1.0, window.growth)) - (load - own)
            self.kv_bound = bound < limit
            limit = min(limit, bound)
        elif self.cliff is not None and sample.at - self._at < _CLIFF_D * window.duration_s:
            limit = min(limit, _NEAR_CLIFF * self.cliff)
        if regime == "cap" and (sample.waiting or 0.0) >= 1.0:
            limit = min(limit, float(n))
        return limit
