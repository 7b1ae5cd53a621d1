"""What the controller sees: one observation a poll, and the recent past of them.

Throughput is the server's own count of tokens where it has one, else the tokens that arrived in
streams, else Little's law over completions: X = mean in flight x sum of tokens / sum of latencies.
Completed tokens a second would be the obvious fourth, and the worst: over one mean request
duration it scatters by 5-10 % where Little's law does by 0.2 %.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from fanout_workers.auto.prefill import Prefill


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
    """

    tokens: int
    unstarted: int = 0
    stalled: int = 0


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
    """Tokens/s over the samples; None if they do not tell."""
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


class Window:
    """The recent past.

    Attributes:
        samples: oldest first.
        mean_tokens: mean tokens of a reply, of late.
        others: requests of other clients at the server, of late.
    """

    _KEPT = 720
    #: Completions that make a mean.
    _ENOUGH = 24

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=self._KEPT)
        self.mean_tokens: float | None = None
        self.others = 0.0
        self._last: Observation | None = None
        self._began: float | None = None
        self._requests = self._tokens = self._latency_s = 0.0
        self._starts = self._prompts = 0.0
        self._prefill = Prefill()

    def add(self, seen: Observation) -> Sample | None:
        """Take an observation; None for the first one, or when a counter went backwards."""
        last, self._last = self._last, seen
        if self._began is None:
            self._began = seen.at
        if last is None or seen.at <= last.at:
            return None
        self._note_completions(seen, seen.at - last.at)
        sample = self._sample(seen, last)
        if sample is not None:
            self.samples.append(sample)
        return sample

    @property
    def duration_s(self) -> float:
        """D, the mean duration of a request, of late; before any ended, the time until now."""
        if self._requests > 0:
            return self._latency_s / self._requests
        if self._last is None or self._began is None:
            return 0.0
        return max(self._last.at - self._began, 1.0)

    @property
    def poll_s(self) -> float:
        """Seconds between polls, of late."""
        return self.samples[-1].dt_s if self.samples else 5.0

    def last(self, seconds: float) -> list[Sample]:
        """The samples of the last so many seconds."""
        if not self.samples:
            return []
        since = self.samples[-1].at - seconds + 1e-6
        return list(takewhile(lambda s: s.at > since, reversed(self.samples)))[::-1]

    def _note_completions(self, seen: Observation, dt_s: float) -> None:
        # Forgotten over one D, but never below what makes a mean.
        if self._requests > self._ENOUGH:
            kept = max(math.exp(-dt_s / self.duration_s), self._ENOUGH / self._requests)
            self._requests *= kept
            self._tokens *= kept
            self._latency_s *= kept
            self._starts *= kept
            self._prompts *= kept
        self._requests += seen.completed
        self._tokens += seen.tokens
        self._latency_s += seen.latency_s
        if self._requests > 0:
            self.mean_tokens = self._tokens / self._requests

    def _sample(self, seen: Observation, last: Observation) -> Sample | None:
        dt_s = seen.at - last.at
        own = max(seen.mean_in_flight, 1e-9)
        rate: float | None = None
        load, running, waiting, kv, preempted = own, None, None, None, 0.0
        if seen.streams is not None:
            rate = seen.streams.tokens / dt_s
            preempted = float(seen.streams.stalled)
            if seen.gauges is None:
                waiting = float(seen.streams.unstarted + seen.streams.stalled)
                running = max(0.0, seen.in_flight - waiting)
        if seen.gauges is not None:
            gauges, before = seen.gauges, last.gauges
            if before is not None and _started_again(gauges, before):
                return None
            total = gauges.running + gauges.waiting
            self.others += (max(0.0, total - seen.in_flight) - self.others) * 0.2
            mine = min(1.0, seen.in_flight / total) if total > 0 else 1.0
            running, waiting = gauges.running * mine, gauges.waiting * mine
            kv = gauges.kv
            preempted = gauges.preemptions - before.preemptions if before else 0.0
            if gauges.tokens is not None and before is not None and before.tokens is not None:
                # All clients' tokens belong with all clients' requests: by its own tokens alone,
                # a greedy client would seem to gain what it takes from others.
                rate = (gauges.tokens - before.tokens) / dt_s
                load = own + max(0.0, total - seen.in_flight)
        prefill_s = prompt_s = 0.0
        if rate is not None and (prompts := self._prompts_of(seen, last, dt_s)) is not None:
            started = max(0, seen.completed + seen.timeouts + seen.in_flight - last.in_flight)
            self._starts += started * load / own
            self._prompts += prompts * dt_s
            self._prefill.add(rate, prompts, load)
            if self.mean_tokens and self._starts > 0:
                prefill_s = self._prefill.seconds(dt_s, prompts)
                prompt_s = self._prefill.token_s * self._prompts / self._starts / self.mean_tokens
        return Sample(
            seen.at, dt_s, seen.in_flight, own, load, rate, seen.completed, seen.tokens,
            seen.latency_s, seen.timeouts, running, waiting, kv, preempted, prefill_s, prompt_s,
        )  # fmt: skip

    def _prompts_of(self, seen: Observation, last: Observation, dt_s: float) -> float | None:
        if seen.gauges is None or last.gauges is None:
            return None
        now, before = seen.gauges.prompts, last.gauges.prompts
        return None if now is None or before is None else max(0.0, now - before) / dt_s


def _started_again(now: Gauges, before: Gauges) -> bool:
    return now.preemptions < before.preemptions or (now.tokens or 0.0) < (before.tokens or 0.0)
