"""The client's timeout follows from the work; a shorter one kills every request.

A reply without streaming shows no byte until it is done. With N requests in flight and r tokens/s
for each, max_tokens takes max_tokens / r seconds: 1,024 tokens at 3.6 tokens/s is 285 s, and a
client that waits for 180 s gets nothing while the server looks busy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from fanout.errors import ConfigError

if TYPE_CHECKING:
    from fanout.settings import Endpoint

#: Slowest tokens/s of one sequence to expect when the user says nothing. The published curves of a
#: DGX Spark at their peaks give 2.85 and 3.62; a server that queues gives 2.13.
DEFAULT_MIN_TOKENS_PER_S = 2.0

#: Room for the spread of decode speed between sequences of one batch.
MARGIN = 1.5

#: Seconds for connecting, reading the prompt and waiting for the first slot.
PREFILL_S = 60.0


@dataclass(frozen=True, slots=True)
class Timeout:
    """A derived timeout and the numbers that it follows from.

    Attributes:
        max_tokens: completion tokens one request may take.
        min_tokens_per_s: slowest decode speed of one sequence at N in flight.
        seconds: what the client waits for one reply.
    """

    max_tokens: int
    min_tokens_per_s: float
    seconds: float

    def arithmetic(self) -> str:
        """The calculation in one line, for a person to check."""
        return (
            f"{self.max_tokens} tokens / {self.min_tokens_per_s:g} tokens/s x {MARGIN:g} "
            f"+ {PREFILL_S:g} s = {needed(self.max_tokens, self.min_tokens_per_s):.0f} s"
        )


def needed(max_tokens: int, min_tokens_per_s: float) -> float:
    """Seconds that one reply of `max_tokens` may take at the slowest expected speed."""
    return max_tokens / min_tokens_per_s * MARGIN + PREFILL_S


def largest(min_tokens_per_s: float, timeout_s: float | None) -> int | None:
    """The most tokens of one reply that `timeout_s` is long enough for; None without a timeout."""
    if timeout_s is None:
        return None
    return max(0, math.floor((timeout_s - PREFILL_S) * min_tokens_per_s / MARGIN + 1e-9))


@lru_cache(maxsize=256)  # asked for each request, and nearly always the same
def derive(max_tokens: int, min_tokens_per_s: float, wanted_s: float | None) -> Timeout:
    """The timeout for requests of `max_tokens`, or the user's own if it is long enough.

    Args:
        max_tokens: completion tokens one request may take.
        min_tokens_per_s: slowest decode speed of one sequence at N in flight.
        wanted_s: the endpoint's `timeout_s`, in seconds, if set.

    Raises:
        ConfigError: `wanted_s` is shorter than the work can take.
    """
    least = needed(max_tokens, min_tokens_per_s)
    if wanted_s is None:
        return Timeout(max_tokens, min_tokens_per_s, least)
    if wanted_s < least:
        arithmetic = Timeout(max_tokens, min_tokens_per_s, least).arithmetic()
        raise ConfigError(
            f"timeout_s = {wanted_s:g} would kill requests that are still running: {arithmetic}; "
            "raise timeout_s, lower max_tokens, or set min_tokens_per_s to what you measured"
        )
    return Timeout(max_tokens, min_tokens_per_s, wanted_s)


def check_timeouts(endpoints: Iterable[Endpoint], params: object) -> None:
    """Refuse a job whose replies may take longer than an endpoint's timeout_s.

    Args:
        endpoints: all that may be asked.
        params: the task kind's parameters; their `max_tokens`, where there is one, is the budget.

    Raises:
        ConfigError: one of them would kill the job's requests; says the arithmetic.
    """
    max_tokens = getattr(params, "max_tokens", None)
    if not isinstance(max_tokens, int):
        return
    for endpoint in endpoints:
        try:
            derive(max_tokens, endpoint.min_tokens_per_s, endpoint.timeout_s)
        except ConfigError as error:
            raise ConfigError(f"endpoint {endpoint.name}: {error}") from None
