"""What the controller sees: one observation a poll, and the recent past of them.

Throughput is the server's own count of tokens where it has one, else the tokens that arrived in
streams, else Little's law over completions: X = mean in flight x sum of tokens / sum of latencies.
Completed tokens a second would be the obvious fourth, and the worst: over one mean request
duration it scatters by 5-10 % where Little's law does by 0.2 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Polls in one mean duration of a request, and the shortest time between two, in seconds.
_IN_ONE = 4
_LEAST_S = 0.5


def pace_s(duration_s: float, longest_s: float) -> float:
    """Seconds until the next poll: sooner where requests are short.

    Args:
        duration_s: of a request, mean.
        longest_s: seconds between two polls, at most.
    """
    return min(longest_s, max(_LEAST_S, duration_s / _IN_ONE))


@dataclass(frozen=True, slots=True)
class Gauges:
    """What the server's /metrics say at the moment of the poll.

    Attributes:
        running: requests that generate, of all clients.
        waiting: requests queued in the server.
        kv: share of the KV cache in use, 0 to 1; None where it is not shown.
        preemptions: counter of preempted requests.
        tokens: counter of generated tokens; None where it is not kept token by token.
        prompts: counter of prompt tokens taken in.
    """

    running: float
    waiting: float
    kv: float | None = None
    preemptions: float = 0.0
    tokens: float | None = None
    prompts: float | None = None


@dataclass(frozen=True, slots=True)
class Streams:
    """What streamed replies show.

    Attributes:
        tokens: tokens that arrived since the last poll.
        unstarted: streams in flight whose first token is overdue: they queue in the server.
        stalled: streams in flight that have begun and fallen silent: they were preempted.
        begun: streams whose first token has come since the last poll; None if that is not counted.
    """

    tokens: int
    unstarted: int = 0
    stalled: int = 0
    begun: int | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """One poll; counts and sums are since the last one, over all worker processes.

    Attributes:
        at: seconds, of any clock that goes evenly.
        in_flight: own requests in flight now.
        mean_in_flight: own requests in flight, mean over the time since the last poll.
        completed: replies that came.
        tokens: sum of their generated tokens.
        latency_s: sum of their durations.
        timeouts: requests given up for want of a reply.
        overloads: requests that the server refused (429, 503, 529).
        retry_after_s: the longest wait that it asked for.
        gauges: the server's metrics, if it has any.
        streams: if replies are streamed.
    """

    at: float
    in_flight: int
    mean_in_flight: float
    completed: int = 0
    tokens: int = 0
    latency_s: float = 0.0
    timeouts: int = 0
    overloads: int = 0
    retry_after_s: float = 0.0
    gauges: Gauges | None = None
    streams: Streams | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """An observation as rates.

    Attributes:
        at, dt_s: its time, and the time since the one before.
        now: own requests in flight at its end.
        own: own requests in flight, mean.
        load: requests at the server of all clients, mean, as far as it is known.
        rate: tokens/s that `load` makes; None where only completions tell.
        completed, tokens, latency_s, timeouts: as observed.
        running, waiting: own requests that the server works on, and that queue in it.
        kv: share of the KV cache in use.
        preempted: requests preempted (or stalled, where only streams tell).
        prefill_s: seconds of `dt_s` in which the server took in prompts instead of generating.
        prompt_s: what a prompt costs, in seconds for each token of its reply, of late.
    """

    at: float
    dt_s: float
    now: int
    own: float
    load: float
    rate: float | None
    completed: int
    tokens: int
    latency_s: float
    timeouts: int
    running: float | None = None
    waiting: float | None = None
    kv: float | None = None
    preempted: float = 0.0
    prefill_s: float = 0.0
    prompt_s: float = 0.0


def throughput(samples: Sequence[Sample]) -> float | None:
    """Tokens/s over the samples; None if they do not tell.

    As far as it is known what prompts cost, the tokens/s that come in the long run at this N: with
    as many prompts as replies, whatever was taken in just then.
    """
    seconds = sum(s.dt_s for s in samples)
    if not samples or seconds <= 0:
        return None
    # A poll that the server's metrics missed must not change the way of measuring.
    known = [s for s in samples if s.rate is not None]
    if 2 * len(known) > len(samples):
        tokens = sum((s.rate or 0.0) * s.dt_s for s in known)
        if tokens <= 0:
            return None
        generating = sum(s.dt_s - s.prefill_s for s in known)
        return tokens / (generating + tokens * known[-1].prompt_s)
    latency = sum(s.latency_s for s in samples)
    if latency <= 0:
        return None
    own = sum(s.own * s.dt_s for s in samples) / seconds
    return own * sum(s.tokens for s in samples) / latency


def speed(samples: Sequence[Sample]) -> float | None:
    """Tokens/s while no prompts are taken in: what does not change with the prompts' length."""
    known = [s for s in samples if s.rate is not None]
    if 2 * len(known) <= len(samples):
        return throughput(samples)
    generating = sum(s.dt_s - s.prefill_s for s in known)
    return sum((s.rate or 0.0) * s.dt_s for s in known) / generating or None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
