"""Permits: at most N requests in flight at each endpoint.

A permit wraps the HTTP request and nothing else: not the queue wait, not a back-off, not the
validation of the reply. All of it lives on one event loop, so a permit that is given back starts
the next request at once, without a round trip anywhere.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fanout import Endpoint


@dataclass(slots=True)
class Load:
    """What one endpoint carries: `in_flight` of `limit` requests."""

    endpoint: Endpoint
    limit: int
    in_flight: int = 0

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
        endpoints: the tier's endpoints; each gives as many permits as its `concurrency`.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._loads = {e.name: Load(e, e.concurrency) for e in endpoints}
        self._waiting: deque[asyncio.Future[Load]] = deque()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Permit]:
        """A permit of the least loaded endpoint, first come, first served."""
        asked = time.monotonic()
        load = await self._take()
        try:
            yield Permit(load.endpoint, time.monotonic() - asked)
        finally:
            self._give_back(load)

    def in_flight(self) -> dict[str, int]:
        """Requests in flight by endpoint."""
        return {name: load.in_flight for name, load in self._loads.items()}

    def limits(self) -> dict[str, int]:
        """N by endpoint."""
        return {name: load.limit for name, load in self._loads.items()}

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
