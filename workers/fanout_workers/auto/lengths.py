"""How long the work is, of late: durations, replies, and prompts in flight and newly sent."""

from __future__ import annotations

import math

from fanout_workers.auto.observe import Observation

#: Requests that make a mean.
_ENOUGH = 24
#: A request in flight has generated more than half of a mean reply, for long ones are in flight
#: for longer: E[L^2] / 2 E[L], with lengths that scatter by half of their mean.
_GENERATED = 0.64


class Lengths:
    """Means over about one D; `fresh` ones over the last two dozen requests.

    Attributes:
        tokens: of a reply, mean; None before any came.
    """

    def __init__(self) -> None:
        self.tokens: float | None = None
        self._began: float | None = None
        self._at = 0.0
        self._requests = self._tokens = self._latency_s = 0.0
        self._starts = self._prompts = 0.0
        self._fresh_starts = self._fresh_prompts = 0.0

    @property
    def duration_s(self) -> float:
        """D, the mean duration of a request; before any ended, the time until now."""
        if self._requests > 0:
            return self._latency_s / self._requests
        return 0.0 if self._began is None else max(self._at - self._began, 1.0)

    @property
    def prompt(self) -> float | None:
        """Prompt tokens of a request, mean over about one D: of what is in flight."""
        return self._prompts / self._starts if self._starts >= 1 else None

    @property
    def settled(self) -> bool:
        """Whether enough replies have come to speak of a mean."""
        return self._requests >= _ENOUGH

    @property
    def growth(self) -> float:
        """What a request that is sent now takes of the KV cache over what one in flight does.

        Known long before replies come: it is what the cache will grow by, at the same N.
        """
        prompt, fresh = self.prompt, self._fresh_starts
        if prompt is None or self.tokens is None or fresh < _ENOUGH / 2 or not self.settled:
            return 1.0
        made = _GENERATED * self.tokens
        return (self._fresh_prompts / fresh + made) / (prompt + made)

    def began(self, at: float) -> None:
        """The time of an observation."""
        self._began = at if self._began is None else self._began
        self._at = at

    def ended(self, seen: Observation, dt_s: float) -> None:
        """Replies that came within `dt_s` seconds."""
        # Forgotten over one D, but never below what makes a mean.
        if self._requests > _ENOUGH:
            kept = max(math.exp(-dt_s / self.duration_s), _ENOUGH / self._requests)
            self._requests, self._tokens = self._requests * kept, self._tokens * kept
            self._latency_s *= kept
            self._starts, self._prompts = self._starts * kept, self._prompts * kept
        self._requests += seen.completed
        self._tokens += seen.tokens
        self._latency_s += seen.latency_s
        if self._requests > 0:
            self.tokens = self._tokens / self._requests

    def started(self, requests: float, prompts: float) -> None:
        """So many requests were sent, and so many prompt tokens taken in."""
        self._starts += requests
        self._prompts += prompts
        kept = min(1.0, _ENOUGH / (self._fresh_starts + requests)) if self._fresh_starts else 1.0
        self._fresh_starts = self._fresh_starts * kept + requests
        self._fresh_prompts = self._fresh_prompts * kept + prompts
