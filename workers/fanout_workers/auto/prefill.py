"""What taking in prompts costs: while a server does, it generates less, and that is no matter of N.

Of a poll's time, `prompts` x p goes to prompts and the rest to generating, at a speed that depends
on N. Replies end in waves, and so do prompts begin: at 260 requests in flight with prompts of 1,500
tokens, tokens/s scatter by 8 % within ten seconds for that reason alone, where the server's own
speed does by 3 %. p is the slope between successive polls.
"""

from __future__ import annotations

import math

#: Polls over which an old pair of polls is forgotten.
_MEMORY = 200.0
#: Pairs that make a slope.
_ENOUGH = 6
#: Generating never has less than this part of the time.
_LEAST = 0.2


class Prefill:
    """Learns the seconds that one prompt token takes."""

    def __init__(self) -> None:
        self._last: tuple[float, float, float] | None = None
        self._pairs = 0
        self._vv = self._vw = self._ww = self._uv = self._uw = 0.0
        self.token_s = 0.0

    def add(self, rate: float, prompts: float, load: float) -> None:
        """A poll: generated and prompt tokens a second, and requests at the server."""
        last, self._last = self._last, (rate, prompts, load)
        if last is None or min(rate, last[0]) <= 0 or min(load, last[2]) <= 0:
            return
        # With x = y (1 - p m) and y ~ N^e, linear in p and e:
        # dx / x = p (m dx / x - dm) + e' dN / N.
        u = 2 * (rate - last[0]) / (rate + last[0])
        v = u * (prompts + last[1]) / 2 - (prompts - last[1])
        w = math.log(load / last[2])
        kept = 1 - 1 / _MEMORY
        self._vv = kept * self._vv + v * v
        self._vw = kept * self._vw + v * w
        self._ww = kept * self._ww + w * w
        self._uv = kept * self._uv + u * v
        self._uw = kept * self._uw + u * w
        self._pairs += 1
        if self._pairs >= _ENOUGH:
            self.token_s = max(0.0, self._slope())

    def _slope(self) -> float:
        # The elasticity is between 0 and 1 wherever it matters: .5 before anything is known of it.
        ww, uw = self._ww + 0.01, self._uw + 0.005
        determinant = self._vv * ww - self._vw * self._vw
        if determinant <= 1e-9 * self._vv * ww:
            return 0.0
        return (self._uv * ww - uw * self._vw) / determinant

    def seconds(self, dt_s: float, prompts: float) -> float:
        """Of `dt_s` seconds in which so many prompt tokens were taken in: what went to them."""
        return min(self.token_s * prompts, (1 - _LEAST) * dt_s)
