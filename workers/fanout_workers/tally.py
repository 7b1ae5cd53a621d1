"""What one process sends to an endpoint and gets back, counted: what the controller of N sees.

Counters only grow, and whoever reads them takes differences: a reading that is lost costs nothing.
A request costs a few additions; nothing goes to Redis by request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields

from fanout import Failure, Kind, Reply
from fanout_workers.model import Meter


@dataclass(frozen=True, slots=True)
class Totals:
    """The counters of one process at one moment.

    Attributes:
        at: seconds of the process's own clock.
        in_flight: requests in flight now.
        area: requests in flight, integrated over time; in seconds.
        completed, tokens, latency_s: replies that came, their tokens and durations.
        timeouts, overloads: requests given up, and refused by the server.
        retry_after_s: the longest wait that a refusal has asked for, since the last reading.
        chunks, ended_chunks: pieces of streamed text, and those of replies that are complete.
        unstarted, stalled: streams overdue with their first token, and silent in mid-reply.
        begun: streams that have shown a first token.
        streams: whether replies are streamed.
        kind: the task kind that was asked for last.
    """

    at: float = 0.0
    in_flight: int = 0
    area: float = 0.0
    completed: int = 0
    tokens: int = 0
    latency_s: float = 0.0
    timeouts: int = 0
    overloads: int = 0
    retry_after_s: float = 0.0
    chunks: int = 0
    ended_chunks: int = 0
    unstarted: int = 0
    stalled: int = 0
    streams: bool = False
    kind: str = ""
    begun: int = 0


#: Counters, of which differences are taken.
COUNTERS = (
    "at", "area", "completed", "tokens", "latency_s", "timeouts", "overloads", "chunks",
    "ended_chunks", "begun",
)  # fmt: skip


@dataclass(eq=False, slots=True)
class Flight:
    """One request at the endpoint."""

    tally: Tally
    started: float
    meter: Meter = field(default_factory=Meter)
    # Chunks at the last reading, and readings since one came.
    seen: int = 0
    silent: int = 0

    def answered(self, reply: Reply) -> None:
        """The endpoint has answered."""
        self.tally.count(self, reply.usage.completion)

    def failed(self, failure: Failure) -> None:
        """The request has failed."""
        tally = self.tally
        if failure.usage is not None:  # a reply that is of no use took its time and tokens too
            tally.count(self, failure.usage.completion)
        elif failure.kind is Kind.TIMEOUT:
            tally.timeouts += 1
        elif failure.kind is Kind.OVERLOAD:
            tally.overloads += 1
            tally.retry_after_s = max(tally.retry_after_s, failure.retry_after or 0.0)

    def close(self) -> None:
        """The request is no longer in flight, however it ended."""
        self.tally.close(self)


class Tally:
    """Counts for one endpoint.

    Args:
        streams: whether its replies are streamed.
        clock: seconds that only grow.
    """

    #: Readings without a token after which a stream counts as silent.
    _SILENT = 2

    def __init__(self, streams: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._streams = streams
        self._clock = clock
        self._flights: set[Flight] = set()
        self._at = clock()
        self._area = 0.0
        self._ended_chunks = self._all_chunks = self._begun = 0
        self._completed = self._tokens = 0
        self._latency_s = 0.0
        self._kind = ""
        self.timeouts = self.overloads = 0
        self.retry_after_s = 0.0

    def start(self, kind: str) -> Flight:
        """A request goes out, for a task of that kind."""
        self._tick()
        self._kind = kind
        flight = Flight(self, self._at)
        self._flights.add(flight)
        return flight

    def count(self, flight: Flight, tokens: int) -> None:
        """A reply has come."""
        self._completed += 1
        self._tokens += tokens
        self._latency_s += self._clock() - flight.started
        self._ended_chunks += flight.meter.chunks

    def close(self, flight: Flight) -> None:
        """A request has ended."""
        self._tick()
        self._flights.discard(flight)
        self._all_chunks += flight.meter.chunks
        self._begun += flight.meter.chunks > 0

    def read(self) -> Totals:
        """The counters now; to be called once a poll."""
        self._tick()
        live = unstarted = stalled = begun = 0
        if self._streams:
            live, unstarted, stalled = self._look(self._flights)
            begun = sum(flight.meter.chunks > 0 for flight in self._flights)
        retry_after_s, self.retry_after_s = self.retry_after_s, 0.0
        return Totals(
            at=self._at, in_flight=len(self._flights), area=self._area, completed=self._completed,
            tokens=self._tokens, latency_s=self._latency_s, timeouts=self.timeouts,
            overloads=self.overloads, retry_after_s=retry_after_s,
            chunks=self._all_chunks + live, ended_chunks=self._ended_chunks, unstarted=unstarted,
            stalled=stalled, streams=self._streams, kind=self._kind, begun=self._begun + begun,
        )  # fmt: skip

    def _look(self, flights: Iterable[Flight]) -> tuple[int, int, int]:
        live = unstarted = stalled = 0
        for flight in flights:
            chunks = flight.meter.chunks
            live += chunks
            flight.silent = flight.silent + 1 if chunks == flight.seen else 0
            flight.seen = chunks
            if flight.silent > self._SILENT:
                unstarted += chunks == 0
                stalled += chunks > 0
        return live, unstarted, stalled

    def _tick(self) -> None:
        now = self._clock()
        self._area += len(self._flights) * (now - self._at)
        self._at = now


def totals_of(raw: dict[str, object]) -> Totals:
    """The totals in a decoded JSON object; fields of another version are left out."""
    known = {one.name for one in fields(Totals)}
    return Totals(**{name: value for name, value in raw.items() if name in known})  # type: ignore[arg-type]
