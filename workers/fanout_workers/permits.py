"""Permits: at most N requests in flight at each endpoint.

A permit wraps the HTTP request and nothing else: not the queue wait, not a back-off, not the
validation of the reply. All of it lives on one event loop, so a permit that is given back starts
the next request at once, without a round trip anywhere. How many of N this process may give is
`fanout_workers.leases`' business, whether an endpoint is fit to be asked its circuit's.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from itertools import islice

from fanout import Endpoint, Failure
from fanout_workers.circuit import Circuit

#: Waiting requests looked at for one that does not avoid the endpoint which is free.
_LOOK_AHEAD = 32


def boottime() -> float:
    """Seconds that go on while the machine sleeps: a lease does too, in Redis."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Fenced(Exception):
    """The permit was taken back while the request was in flight: the request is aborted."""


class Unneeded(Exception):
    """No endpoint of the tier can be asked by this process: somebody else should try."""


@dataclass(slots=True)
class Load:
    """What one endpoint carries: `in_flight` of `limit` requests.

    Attributes:
        endpoint: the endpoint.
        circuit: whether it may be asked at all.
        limit: requests that may be in flight.
        in_flight: requests that are.
        low: the fewest in flight since somebody last looked.
        started: requests begun so far.
        valid_until: when `limit` ends to hold, by the clock of `boottime`.
        held: the permits of the requests in flight.
        hungry: set when a request has to wait for a permit or the circuit has changed; cleared
            by who acts on it.
    """

    endpoint: Endpoint
    circuit: Circuit
    limit: int
    in_flight: int = 0
    low: int = 0
    started: int = 0
    valid_until: float = float("inf")
    held: set[_Held] = field(default_factory=set)
    hungry: asyncio.Event = field(default_factory=asyncio.Event)

    def take_low(self) -> int:
        """The fewest in flight since the last call."""
        low, self.low = self.low, self.in_flight
        return low

    @property
    def share(self) -> float:
        """The part of its limit in use; an endpoint without any is full."""
        return self.in_flight / self.limit if self.limit > 0 else 1.0

    @property
    def quota(self) -> int:
        """Requests that this process can have in flight here as things are."""
        if self.circuit.state == "closed" and not self.circuit.resumes_in_s:
            return self.limit
        return min(self.limit, self.circuit.state == "half-open")


@dataclass(slots=True)  # not frozen: that takes three times as long to make, for each request
class Permit:
    """Leave to send one request to `endpoint`; `waited_s` is what it took to get it.

    Whoever holds it says how the request ended, unless that says nothing about the endpoint.
    """

    endpoint: Endpoint
    waited_s: float
    load: Load
    epoch: int

    def answered(self) -> None:
        """The endpoint has answered."""
        self.load.circuit.answered(self.epoch)

    def failed(self, failure: Failure) -> None:
        """The request has failed."""
        self.load.circuit.failed(self.epoch, failure, is_busy=self.load.in_flight > 1)


@dataclass(slots=True, eq=False)
class _Turn:
    """One request that waits for a permit."""

    granted: asyncio.Future[tuple[Load, int]]
    avoid: str | None
    fresh: Callable[[], bool]


class Permits:
    """The permits of one tier in one process.

    Args:
        endpoints: the tier's endpoints; each gives as many permits as its `concurrency`, until
            `set_limit` says otherwise.
        clock: seconds that only grow; also the clock of `valid_until`.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], clock: Callable[[], float] = boottime
    ) -> None:
        self._clock = clock
        self._loads = {e.name: Load(e, Circuit(e.name, clock), e.first_n) for e in endpoints}
        for load in self._loads.values():
            load.circuit.on_change = self._on_circuit
        self._waiting: deque[_Turn] = deque()
        #: Requests that wait for a permit.
        self.waiting = 0
        self._resume: asyncio.TimerHandle | None = None

    def acquire(
        self, *, avoid: str | None = None, fresh: Callable[[], bool] = lambda: False
    ) -> _Held:
        """A permit of the least loaded endpoint, first come, first served; for `async with`.

        Args:
            avoid: an endpoint to pass over as long as another one has room.
            fresh: whether nothing is lost if another process does it: `send_back` asks that.

        Raises:
            Fenced: the permit was taken back before the block had ended.
            Unneeded: the wait was ended by `send_back`.
        """
        return _Held(self, avoid, fresh)

    @contextmanager
    def probe(self, endpoint: str) -> Iterator[int | None]:
        """A place for a request that is no item's, whatever its circuit says, if there is room.

        Gives the epoch of its circuit, or None: then nothing may be sent.
        """
        load = self._loads[endpoint]
        if load.in_flight >= load.limit or self._clock() >= load.valid_until:
            yield None
            return
        epoch = self._start(load)
        try:
            yield epoch
        finally:
            self._give_back(load, epoch)

    def loads(self) -> tuple[Load, ...]:
        """What each endpoint carries; to be read, not written."""
        return tuple(self._loads.values())

    def load(self, endpoint: str) -> Load:
        """What one endpoint carries; to be read, not written."""
        return self._loads[endpoint]

    def in_flight(self) -> dict[str, int]:
        """Requests in flight by endpoint."""
        return {name: load.in_flight for name, load in self._loads.items()}

    def limits(self) -> dict[str, int]:
        """N by endpoint."""
        return {name: load.limit for name, load in self._loads.items()}

    @property
    def quota(self) -> int:
        """Requests that this process can have in flight as things are."""
        return sum(load.quota for load in self._loads.values())

    def fence(self, endpoint: str) -> None:
        """Give no more permits of `endpoint` and abort what is in flight there."""
        load = self._loads[endpoint]
        load.limit = 0
        for held in load.held:
            held.abort()

    def set_limit(self, endpoint: str, limit: int, valid_until: float = float("inf")) -> None:
        """Change N: up at once, down as requests finish.

        Args:
            endpoint: its name.
            limit: requests that may be in flight.
            valid_until: when that ends to hold. No permit is given later, also if nobody has
                had the time to say so: a stopped process goes on as if no time had passed.
        """
        load = self._loads[endpoint]
        load.limit = limit
        load.valid_until = valid_until
        self._hand_out()

    def send_back(self) -> int:
        """End the wait of all fresh requests with `Unneeded`; returns how many there were."""
        sent = [t for t in self._waiting if not t.granted.done() and t.fresh()]
        for turn in sent:
            turn.granted.set_exception(Unneeded())
        return len(sent)

    async def _take(self, avoid: str | None, fresh: Callable[[], bool]) -> tuple[Load, int]:
        if not self._waiting and (free := self._least_loaded(avoid)):
            return free, self._start(free)
        turn = _Turn(asyncio.get_running_loop().create_future(), avoid, fresh)
        self._waiting.append(turn)
        self.waiting += 1
        for load in self._loads.values():
            load.hungry.set()
        try:
            return await turn.granted
        except asyncio.CancelledError:
            granted = turn.granted
            # The permit may have been handed over before the cancellation was seen.
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._give_back(*granted.result())
            raise
        finally:
            self.waiting -= 1

    def _start(self, load: Load) -> int:
        load.in_flight += 1
        load.started += 1
        return load.circuit.begin()

    def _give_back(self, load: Load, epoch: int) -> None:
        load.in_flight -= 1
        load.circuit.given_up(epoch)
        self._hand_out()
        load.low = min(load.low, load.in_flight)

    def _hand_out(self) -> None:
        while self._waiting:
            if self._waiting[0].granted.done():  # its waiter was cancelled or sent back
                self._waiting.popleft()
                continue
            free = self._least_loaded()
            if free is None:
                return
            turn = self._next_for(free)
            turn.granted.set_result((free, self._start(free)))

    def _next_for(self, load: Load) -> _Turn:
        """The first in the queue that does not avoid `load`, or the first; taken off the queue."""
        name = load.endpoint.name
        for place, turn in enumerate(islice(self._waiting, _LOOK_AHEAD)):
            if turn.avoid != name and not turn.granted.done():
                del self._waiting[place]
                return turn
        return self._waiting.popleft()

    def _least_loaded(self, avoid: str | None = None) -> Load | None:
        best: Load | None = None
        for load in self._loads.values():
            if (
                load.in_flight < load.limit
                and load.circuit.allows
                and self._clock() < load.valid_until
                and (best is None or _before(load, best, avoid))
            ):
                best = load
        return best

    def _on_circuit(self) -> None:
        self._hand_out()
        pauses = [load.circuit.resumes_in_s for load in self._loads.values()]
        for load in self._loads.values():
            load.hungry.set()
        if self._resume is not None:
            self._resume.cancel()
        if any(pauses):
            # A context of its own: this is called from an item, whose context must not be kept.
            loop, pause = asyncio.get_running_loop(), min(filter(None, pauses))
            self._resume = loop.call_later(pause, self._on_circuit, context=Context())


class _Held:
    """A permit for the length of a block.

    Not made of `asyncio.timeout` and `asynccontextmanager`: together they take as long as the rest
    of what a permit costs.
    """

    __slots__ = ("_avoid", "_cancels", "_fresh", "_is_aborted", "_permit", "_permits",
                 "_task")  # fmt: skip

    def __init__(self, permits: Permits, avoid: str | None, fresh: Callable[[], bool]) -> None:
        self._permits = permits
        self._avoid = avoid
        self._fresh = fresh
        self._is_aborted = False

    async def __aenter__(self) -> Permit:
        asked = time.monotonic()
        load, epoch = await self._permits._take(self._avoid, self._fresh)
        task = asyncio.current_task()
        if task is None:
            self._permits._give_back(load, epoch)
            raise RuntimeError("a permit is held by an asyncio task")
        self._task, self._cancels = task, task.cancelling()
        load.held.add(self)
        self._permit = Permit(load.endpoint, time.monotonic() - asked, load, epoch)
        return self._permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        load = self._permit.load
        load.held.discard(self)
        self._permits._give_back(load, self._permit.epoch)
        # As asyncio.Timeout does it: a cancellation that came from elsewhere goes on.
        if (
            self._is_aborted
            and self._task.uncancel() <= self._cancels
            and (isinstance(error, asyncio.CancelledError))
        ):
            raise Fenced from error

    def abort(self) -> None:
        """Cancel what is in the block, which then raises `Fenced`."""
        if not self._is_aborted:
            self._is_aborted = True
            self._task.cancel()


def _before(one: Load, other: Load, avoid: str | None) -> bool:
    if avoid is not None and (one.endpoint.name == avoid) != (other.endpoint.name == avoid):
        return other.endpoint.name == avoid
    return one.share < other.share
