"""From the requests of one N to its point; pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fanout.failures import Kind
from fanout.sweep.point import Point, Server, Spread

#: Characters of a server's words kept as an example.
_WORDS = 200


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that ended.

    Attributes:
        started, ended: seconds on one monotonic clock.
        tokens: completion tokens; of a reply that could not be used, too.
        prompt, cached: prompt tokens, and those of them read from the prefix cache.
        ttft_s: to the first token.
        failure: why there was no answer; None = tokens came.
        words: of the failure, or of the task kind's refusal.
        unusable: why the task kind cannot use the answer; None = it can, or there is no task kind.
        valid: records that this reply completed; None without a task kind.
    """

    started: float
    ended: float
    tokens: int = 0
    prompt: int = 0
    cached: int = 0
    ttft_s: float | None = None
    failure: Kind | None = None
    words: str = ""
    unusable: Kind | None = None
    valid: int | None = None

    @property
    def latency_s(self) -> float:
        return self.ended - self.started


def wave_point(
    n: int, samples: Sequence[Sample], *, ended: float | None = None, server: Server | None = None
) -> Point:
    """The point of requests that were started together, N at a time.

    Args:
        n: how many were held in flight.
        samples: all of them.
        ended: when the wave was given up, if it was.
        server: what the server said meanwhile.
    """
    began = min((s.started for s in samples), default=0.0)
    last = max((s.ended for s in samples), default=0.0)
    wall = max(last, ended or last) - began
    tokens = sum(s.tokens for s in samples)
    busy = sum(s.latency_s for s in samples)
    return _point(
        n,
        samples,
        wall,
        server,
        how="wave",
        tokens=tokens,
        tokens_per_s=tokens / wall if wall else 0.0,
        in_flight=busy / wall if wall else None,
        counted_by="wall",
    )


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time in which N was held.

    Attributes:
        seconds: its length.
        in_flight: mean number of requests in flight in it.
        since: when N became what it is; what began before tells of another N.
        tokens: completion tokens that came in it, counted as they came; None = they were not.
        counted_by: who counted them; `little` if nobody did.
    """

    seconds: float
    in_flight: float
    since: float = 0.0
    tokens: float | None = None
    counted_by: Literal["stream", "server", "little"] = "little"


def steady_point(
    n: int, samples: Sequence[Sample], window: Window, *, server: Server | None = None
) -> Point:
    """The point of a window in which N was held.

    Tokens that were counted as they came give the rate at once. Otherwise it is Little's law over
    the requests that ended in the window: X = mean in flight x sum of tokens / sum of latencies,
    whose spread is a tenth of that of tokens completed per second.
    """
    if window.tokens is not None:
        rate = window.tokens / window.seconds
    else:
        busy = sum(s.latency_s for s in samples)
        rate = window.in_flight * sum(s.tokens for s in samples) / busy if busy else 0.0
    fresh = [s for s in samples if s.failure is None and s.started >= window.since]
    point = _point(
        n,
        samples,
        window.seconds,
        server,
        how="steady",
        tokens=round(rate * window.seconds),
        tokens_per_s=rate,
        in_flight=window.in_flight,
        counted_by=window.counted_by if window.tokens is not None else "little",
    )
    each = rate / window.in_flight if window.in_flight else None
    answered = point.requests - point.failed
    tokens = sum(s.tokens for s in samples) / answered if answered else 0.0
    return point.model_copy(
        update={
            "per_sequence_tokens_per_s": each,
            "mean_latency_s": tokens / each if each else None,
            "latency": Spread.of(s.latency_s for s in fresh),
            "ttft": Spread.of(s.ttft_s for s in fresh if s.ttft_s is not None),
        }
    )


def _point(
    n: int, samples: Sequence[Sample], wall: float, server: Server | None, **figures: Any
) -> Point:
    answered = [s for s in samples if s.failure is None]
    failures = Counter(s.failure for s in samples if s.failure is not None)
    timeouts = failures.pop(Kind.TIMEOUT, 0)
    valid = [s.valid for s in samples if s.valid is not None]
    latency = Spread.of(s.latency_s for s in answered)
    speeds = [s.tokens / s.latency_s for s in answered if s.latency_s > 0]
    return Point(
        concurrency=n,
        requests=len(samples),
        wall_s=wall,
        per_sequence_tokens_per_s=sum(speeds) / len(speeds) if speeds else None,
        mean_latency_s=latency.mean if latency else None,
        latency=latency,
        ttft=Spread.of(s.ttft_s for s in answered if s.ttft_s is not None),
        timeouts=timeouts,
        errors={str(kind): count for kind, count in failures.items()},
        messages=_examples(samples),
        prompt_tokens=_mean([s.prompt for s in answered]),
        cached_tokens=_mean([s.cached for s in answered]),
        valid=sum(valid) if valid else None,
        valid_per_s=sum(valid) / wall if valid and wall else None,
        unusable=dict(Counter(str(s.unusable) for s in samples if s.unusable is not None)),
        server=server,
        **figures,
    )


def _examples(samples: Sequence[Sample]) -> dict[str, str]:
    found: dict[str, str] = {}
    for sample in samples:
        if (kind := sample.failure or sample.unusable) is not None:
            found.setdefault(str(kind), sample.words[:_WORDS])
    return found


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if any(values) else None
