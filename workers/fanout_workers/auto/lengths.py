"""How long the work is, of late: durations, replies, and prompts in flight and newly sent."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fanout_workers.auto.observe import Observation

#: Requests that make a mean.
_ENOUGH = 24
#: A request counts when it is sent, its prompt when the server has taken it in: after a large step
#: up that is some polls later. So many polls' worth of the largest of late are remembered, and how
#: large it was is forgotten by this factor at each poll.
_POLLS, _BURST_KEPT = 2.0, 0.8
#: A request in flight has generated more than half of a mean reply, for long ones are in flight
#: for longer: E[L^2] / 2 E[L], with lengths that scatter by half of their mean.
_GENERATED = 0.64
#: D over which the mix of prompts and replies is forgotten.
_MIX_D = 30.0


@dataclass(slots=True)
class _Sums:
    """Over requests that were sent, and over replies that came."""

    starts: float = 0.0
    prompts: float = 0.0
    ended: float = 0.0
    tokens: float = 0.0

    @property
    def prompt(self) -> float | None:
        return self.prompts / self.starts if self.starts >= 1 else None

    @property
    def ratio(self) -> float | None:
        if self.prompt is None or self.ended < 1 or self.tokens <= 0:
            return None
        return self.prompt / (self.tokens / self.ended)

    def fade(self, kept: float) -> None:
        self.starts, self.prompts = self.starts * kept, self.prompts * kept
        self.ended, self.tokens = self.ended * kept, self.tokens * kept


class Lengths:
    """Means over about one D; `fresh` ones over the last few polls; the mix over many D.

    Attributes:
        tokens: of a reply, mean; None before any came.
    """

    def __init__(self) -> None:
        self.tokens: float | None = None
        self._began: float | None = None
        self._at = 0.0
        self._latency_s = 0.0
        self._late, self._mix = _Sums(), _Sums()
        self._fresh_starts = self._fresh_prompts = self._burst = 0.0

    @property
    def duration_s(self) -> float:
        """D, the mean duration of a request; before any ended, the time until now."""
        if self._late.ended > 0:
            return self._latency_s / self._late.ended
        return 0.0 if self._began is None else max(self._at - self._began, 1.0)

    @property
    def prompt(self) -> float | None:
        """Prompt tokens of a request, mean over about one D: of what is in flight."""
        return self._late.prompt

    @property
    def mix(self) -> float | None:
        """Prompt tokens for each token of a reply, over many D.

        The replies of one D scatter, and after a step up they are the short ones of what has been
        added: two N compared by a mix of their own would differ by that, many times as much as by
        their throughput.
        """
        return self._mix.ratio

    def renew(self) -> None:
        """The work has become other: the mix is what it was of late."""
        self._mix = replace(self._late)

    @property
    def settled(self) -> bool:
        """Whether enough replies have come to speak of a mean."""
        return self._late.ended >= _ENOUGH

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
        if self._late.ended > _ENOUGH:
            self._mix.fade(math.exp(-dt_s / (_MIX_D * self.duration_s)))
            kept = max(math.exp(-dt_s / self.duration_s), _ENOUGH / self._late.ended)
            self._late.fade(kept)
            self._latency_s *= kept
        for sums in (self._late, self._mix):
            sums.ended += seen.completed
            sums.tokens += seen.tokens
        self._latency_s += seen.latency_s
        if self._late.ended > 0:
            self.tokens = self._late.tokens / self._late.ended

    def started(self, requests: float, prompts: float) -> None:
        """So many requests were sent, and so many prompt tokens taken in."""
        for sums in (self._late, self._mix):
            sums.starts += requests
            sums.prompts += prompts
        self._burst = max(requests, _BURST_KEPT * self._burst)
        enough = max(_ENOUGH, _POLLS * self._burst)
        kept = min(1.0, enough / (self._fresh_starts + requests)) if self._fresh_starts else 1.0
        self._fresh_starts = self._fresh_starts * kept + requests
        self._fresh_prompts = self._fresh_prompts * kept + prompts
