"""One measured N: figures of a sweep's row."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

#: Part of the requests from which failing means that N is too high.
_FAILING = 0.05
#: KV use from which the cache is what ends the growth.
KV_FULL = 0.9

How = Literal["wave", "steady"]


class _Figures(BaseModel):
    # Unknown keys are kept out, not refused: a sweep may be continued with another version.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Spread(_Figures):
    """A set of durations in seconds; percentiles by nearest rank."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Spread | None:
        """The spread of `seconds`, or None if there are none."""
        ordered = sorted(seconds)
        if not ordered:
            return None

        def percentile(percent: float) -> float:
            return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]

        return cls(
            mean=sum(ordered) / len(ordered),
            p50=percentile(50),
            p95=percentile(95),
            p99=percentile(99),
            max=ordered[-1],
        )


class Server(_Figures):
    """What the server's own /metrics said during a point; None = it does not say.

    Attributes:
        running_mean, running_max: requests that it ran at once.
        waiting_mean, waiting_max: requests that it queued.
        kv_mean, kv_max: part of its KV cache in use, 0 to 1.
        preemptions: requests that it threw out for want of KV cache.
    """

    running_mean: float | None = None
    running_max: float | None = None
    waiting_mean: float | None = None
    waiting_max: float | None = None
    kv_mean: float | None = None
    kv_max: float | None = None
    preemptions: int | None = None

    @property
    def full(self) -> bool:
        """Whether its KV cache was, as far as it says."""
        return bool(self.preemptions) or (self.kv_max or 0.0) >= KV_FULL


class Point(_Figures):
    """What was measured at one N.

    Attributes:
        concurrency: N, requests held in flight.
        how: `wave` = all started at once and waited for; `steady` = N held, a window measured.
        requests: requests that ended, failed ones included.
        wall_s: from the first start to the last end; of a steady point, the window.
        tokens: completion tokens that came.
        tokens_per_s: aggregate over all requests.
        per_sequence_tokens_per_s: of a wave, the mean over requests of a request's tokens over its
            latency; of a steady point, tokens_per_s over in_flight.
        mean_latency_s: of a wave, of the requests that were answered; of a steady point by Little's
            law, in_flight x tokens of a request over tokens_per_s.
        latency: of the requests that were answered; of a steady point, of those that began at this
            N, and None if it was not held long enough to see some end.
        ttft: of the same requests, to the first token: measured when streaming, else the server's
            own figure.
        in_flight: mean number of requests in flight.
        timeouts: requests that were not answered in time.
        errors: other requests that failed, by kind.
        messages: one example of what was said, by kind.
        prompt_tokens, cached_tokens: mean per request; cached = read from the prefix cache.
        valid: records that the task kind accepted; None without one.
        valid_per_s: the same per second: goodput.
        unusable: replies that the task kind refused, by kind.
        server: from the server's /metrics.
        counted_by: what the tokens per second of a steady point follow from: `server` and `stream`
            count tokens in the window, `little` is Little's law over completed requests.
    """

    concurrency: int
    how: How = "wave"
    requests: int = 0
    wall_s: float = 0.0
    tokens: int = 0
    tokens_per_s: float = 0.0
    per_sequence_tokens_per_s: float | None = None
    mean_latency_s: float | None = None
    latency: Spread | None = None
    ttft: Spread | None = None
    in_flight: float | None = None
    timeouts: int = 0
    errors: dict[str, int] = Field(default_factory=dict)
    messages: dict[str, str] = Field(default_factory=dict)
    prompt_tokens: float | None = None
    cached_tokens: float | None = None
    valid: int | None = None
    valid_per_s: float | None = None
    unusable: dict[str, int] = Field(default_factory=dict)
    server: Server | None = None
    counted_by: Literal["wall", "stream", "server", "little"] = "wall"

    @property
    def failed(self) -> int:
        """Requests without an answer."""
        return self.timeouts + sum(self.errors.values())

    @property
    def failing(self) -> bool:
        """Whether so many requests failed that N is too high, or the endpoint is broken."""
        return self.failed > _FAILING * self.requests

    @property
    def queued(self) -> bool:
        """Whether the server ran fewer than N and let the rest wait, as far as can be seen.

        Its own /metrics say so; without them it shows in a wave: requests that share the server
        end together, so that N times the mean speed of one is the speed of all, while those that
        wait for others end one batch after another, and the mean over them is higher.
        """
        waiting = self.server.waiting_mean if self.server else None
        if waiting is not None:
            return waiting >= max(1.0, 0.05 * self.concurrency)
        return self.how == "wave" and self.stretch is not None and self.stretch > 1.3

    @property
    def crowded(self) -> bool:
        """Whether the server says that N is too high: it queues, or its KV cache is full."""
        return self.queued or (self.server is not None and self.server.full)

    @property
    def stretch(self) -> float | None:
        """N x per-sequence tokens/s over aggregate tokens/s: 1 while all run at once."""
        if not self.per_sequence_tokens_per_s or not self.tokens_per_s:
            return None
        return self.concurrency * self.per_sequence_tokens_per_s / self.tokens_per_s
