"""What a run came to: counts that add up, tokens/s, latencies, mean in flight, failures by kind.

Everything is added up record by record in flat memory, for a run of any length.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from fanout.advice import Seen
from fanout.wire import STATUSES, Record

#: Width of a histogram bucket: a percentile is right to within 1 %.
_BUCKET = math.log(1.01)
_SLOWEST = 5


class Latencies:
    """A histogram of seconds with buckets that grow by 1 %, for percentiles in flat memory."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._buckets[round(math.log(max(seconds, 1e-6)) / _BUCKET)] += 1
        self.count += 1

    def percentile(self, percent: float) -> float | None:
        """Seconds that `percent` per cent of them do not exceed; None if there are none."""
        rank, seen = math.ceil(self.count * percent / 100), 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank > 0:
                return math.exp(bucket * _BUCKET)
        return None


@dataclass(slots=True)
class Report:
    """Figures of a run, fed with its records.

    Attributes:
        counts: items by status.
        failures: items that did not end ok, by kind.
        seen: what was seen of them, by kind: one example, and what to do.
        mended: failed requests that a retry mended, by kind.
        prompt_tokens, completion_tokens: over all attempts.
        latency: seconds that an item was in work, waits for permits left out.
        slowest: the items that took longest, as (seconds, id).
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    seen: dict[str, Seen] = field(default_factory=dict)
    mended: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency: Latencies = field(default_factory=Latencies)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    _in_flight_s: float = 0.0
    _first: float = math.inf
    _last: float = -math.inf

    def add(self, records: Iterable[Record]) -> None:
        """Take records in; each exactly once."""
        for record in records:
            self.counts[record.status] += 1
            self.prompt_tokens += record.usage.prompt
            self.completion_tokens += record.usage.completion
            self._add_failure(record)
            self._add_timing(record)

    @property
    def done(self) -> int:
        """Records taken in."""
        return self.counts.total()

    @property
    def clean(self) -> bool:
        """Whether every item ended ok."""
        return self.counts["ok"] == self.done

    @property
    def seconds(self) -> float:
        """From the start of the first item to the end of the last one seen."""
        return max(0.0, self._last - self._first)

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens per second over the run."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    @property
    def records_per_s(self) -> float:
        """Records per second over the run."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def mean_in_flight(self) -> float:
        """Requests in flight on average: the time they took together, over the run's time.

        Back-offs are no part of it. Of a request that is in flight nothing is known yet, so the
        mean is a little low while the run goes on.
        """
        return self._in_flight_s / self.seconds if self.seconds else 0.0

    def by_status(self) -> dict[str, int]:
        """Counts by status, in the order of `STATUSES`; zeros left out."""
        return {status: self.counts[status] for status in STATUSES if self.counts[status]}

    def _add_failure(self, record: Record) -> None:
        if record.error is None:
            self.mended.update(record.retried)
            return
        kind = str(record.error.kind)
        self.failures[kind] += 1
        if kind not in self.seen:
            self.seen[kind] = Seen()
        self.seen[kind].add(record)
        self.mended.update({k: n for k, n in record.retried.items() if k != kind})

    def _add_timing(self, record: Record) -> None:
        timing = record.timing
        if timing.total_s is None or timing.finished_at is None:
            return
        self._first = min(self._first, timing.finished_at - timing.total_s)
        self._last = max(self._last, timing.finished_at)
        busy = max(0.0, timing.total_s - (timing.permit_s or 0.0))
        # Records of an older version do not say it; then back-offs count as well.
        self._in_flight_s += busy if timing.in_flight_s is None else timing.in_flight_s
        if record.attempts:
            self.latency.add(busy)
            heapq.heappush(self.slowest, (busy, record.id))
            if len(self.slowest) > _SLOWEST:
                heapq.heappop(self.slowest)


class Rate:
    """Completion tokens per second over the last `span` seconds, for a live display."""

    def __init__(self, span: float = 10.0) -> None:
        self._span = span
        self._points: list[tuple[float, int]] = []

    def add(self, total: int) -> None:
        """Note the running total now."""
        now = time.monotonic()
        self._points.append((now, total))
        while len(self._points) > 2 and self._points[1][0] < now - self._span:
            self._points.pop(0)

    def per_s(self) -> float:
        """The rate; 0 until two totals are known."""
        if len(self._points) < 2:
            return 0.0
        (began, first), (ended, last) = self._points[0], self._points[-1]
        return (last - first) / (ended - began) if ended > began else 0.0
