"""Permits: at most N requests in flight at each endpoint.

A permit wraps the HTTP request and nothing else: not the queue wait, not a back-off, not the
validation of the reply. All of it lives on one event loop, so a permit that is given back starts
the next request at once, without a round trip anywhere. How many of N this process may give is
`fanout_workers.leases`' business.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fanout import Endpoint


class Fenced(Exception):
    """The permit was taken back while the request was in flight: the request is aborted."""


@dataclass(slots=True)
class Load:
    """What one endpoint carries: `in_flight` of `limit` requests."""

    endpoint: Endpoint
    limit: int
    in_flight: int = 0
    scopes: set[asyncio.Timeout] = field(default_factory=set)

    @property
    def share(self) -> float:
        """The part of its limit in use; an endpoint without any is full."""
        return self.in_flight / self.limit if self.limit > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to send one request to `endpoint`; `waited_s` is what it took to get it."""

    endpoint: Endpoint
    waited_s: float


class Permits:
    """The permits of one tier in one process.

    Args:
        endpoints: the tier's endpoints; each gives as many permits as its `concurrency`, until
            `set_limit` says otherwise.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._loads = {e.name: Load(e, e.concurrency) for e in endpoints}
        #: Set when a request has to wait for a permit; cleared by who acts on it.
        self.hungry = asyncio.Event()
        self._waiting: deque[asyncio.Future[Load]] = deque()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Permit]:
        """A permit of the least loaded endpoint, first come, first served.

        Raises:
            Fenced: the permit was taken back before the block had ended.
        """
        asked = time.monotonic()
        load = await self._take()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                load.scopes.add(scope)
                yield Permit(load.endpoint, time.monotonic() - asked)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise Fenced from error
        finally:
            load.scopes.discard(scope)
            self._give_back(load)

    def in_flight(self) -> dict[str, int]:
        """Requests in flight by endpoint."""
        return {name: load.in_flight for name, load in self._loads.items()}

    def limits(self) -> dict[str, int]:
        """N by endpoint."""
        return {name: load.limit for name, load in self._loads.items()}

    @property
    def waiting(self) -> int:
        """Requests that wait for a permit."""
        return sum(not turn.done() for turn in self._waiting)

    def fence(self, endpoint: str) -> None:
        """Give no more permits of `endpoint` and abort what is in flight there."""
        load = self._loads[endpoint]
        load.limit = 0
        now = asyncio.get_running_loop().time()
        for scope in load.scopes:
            scope.reschedule(now)

    def set_limit(self, endpoint: str, limit: int) -> None:
        """Change N: up at once, down as requests finish."""
        self._loads[endpoint].limit = limit
        self._hand_out()

    async def _take(self) -> Load:
        if not self._waiting and (free := self._least_loaded()):
            free.in_flight += 1
            return free
        turn: asyncio.Future[Load] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.hungry.set()
        try:
            return await turn
        except asyncio.CancelledError:
            # The permit may have been handed over before the cancellation was seen.
            if turn.done() and not turn.cancelled():
                self._give_back(turn.result())
            raise

    def _give_back(self, load: Load) -> None:
        load.in_flight -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and (free := self._least_loaded()):
            turn = self._waiting.popleft()
            if turn.done():  # its waiter was cancelled
                continue
            free.in_flight += 1
            turn.set_result(free)

    def _least_loaded(self) -> Load | None:
        free = [load for load in self._loads.values() if load.in_flight < load.limit]
        return min(free, key=lambda load: load.share, default=None)
