"""N over all processes: each worker process leases a part of an endpoint's N in Redis.

One script a second and process, four while requests wait, never one a request. What keeps the sum
of all parts at or below N at every moment, whatever dies in between:

- A process may have up to `cap` requests in flight. The part recorded for it in Redis is never
  smaller than its cap, nor than what it has in flight: it lowers its cap first, and the record
  follows with the next call.
- A part grows only by what the parts of the others leave of N.
- A process whose part has run out has fenced itself before: it gives no permit and aborts what it
  has in flight, because that still loads the server. Its clock starts before the call that renews
  is sent, so it is never late against Redis.
- A process that was stopped in mid-request cannot do that: its connections stay open, and the
  server goes on. Its part stays counted as a *ghost* until the server's own metrics show that
  nothing is left of it, or until its longest request must have ended. A process that was killed
  leaves nothing behind: its ghost goes with the first look. Servers without metrics have no
  ghosts.

Demand (in flight and waiting) is shared max-min fairly, so what one process does not need, another
has within two calls; what cannot start anything demands nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import redis.asyncio
from redis.exceptions import RedisError

from fanout import Endpoint, keys
from fanout.aio import ended
from fanout_workers.lease_script import RENEW
from fanout_workers.permits import Load, Permits, boottime

log = logging.getLogger(__name__)

#: Seconds that a part is held without renewal.
TTL_S = 10.0
#: Seconds between two calls, and at least between two while requests wait for permits.
EVERY_S = 1.0
HUNGRY_S = 0.25
#: Seconds before its end at which a process fences itself: the abort has to reach the server.
MARGIN_S = 1.0
#: Seconds over which a process says how few requests it had in flight, and for which a look at
#: the server is of use.
WINDOW_S = 3.0
#: Seconds over which looks at a server are taken together: the one that saw most counts.
_LOOKS_S = 0.6
#: Seconds after which a process that could start requests, and does not, demands nothing.
_IDLE_S = 3.0
#: Seconds between two tries of a process without quota and without work to get a first permit.
_CURIOUS_S = 2.0
_CURIOUS_MAX_S = 30.0
#: A ghost's longest life where no request has said how long it may take.
_PATIENCE_S = 60.0
#: Seconds between looks whether a server tells its load at all.
_LEARN_S = 15.0


class Look(Protocol):
    """Tells what runs at a server; `fanout_workers.server_page`."""

    known: bool

    async def requests(self) -> int | None:
        """Requests that run or wait there; None if the server does not tell."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What Redis answered.

    Attributes:
        n: N of the endpoint.
        part: the part that this process may fill.
        target: the part to come down or up to.
        look: whether this process shall look at what runs at the server.
        now: Redis's time in ms.
        silent: holders that should have been heard by now.
    """

    n: int
    part: int
    target: int
    look: int = 0
    now: int = 0
    silent: tuple[str, ...] = ()

    @classmethod
    def of(cls, answer: Sequence[Any]) -> Grant:
        """The script's answer."""
        n, part, target, look, now = map(int, answer[:5])
        return cls(n, part, target, look, now, tuple(name.decode() for name in answer[5:]))

    @property
    def cap(self) -> int:
        """Requests that the process may have in flight from now on."""
        return min(self.part, self.target)


@dataclass(slots=True)
class _Lease:
    """The lease on one endpoint, as its process keeps it."""

    endpoint: Endpoint
    load: Load
    fetches: bool = True
    cap: int = 0
    fence: asyncio.TimerHandle | None = None
    #: Holders that are known to have ended and still have a lease.
    ended: tuple[str, ...] = ()
    #: (when, fewest in flight since the one before), for the last WINDOW_S; none had begun before.
    lows: deque[tuple[float, int]] = field(default_factory=lambda: deque([(boottime(), 0)]))
    #: (Redis's time before, own time after, load) of the last looks.
    looks: deque[tuple[int, float, int]] = field(default_factory=deque)
    audits: bool = False
    looking: bool = False
    learned_at: float = -math.inf
    started: int = 0
    started_at: float = field(default_factory=boottime)
    got_at: float | None = None
    curious_at: float = -math.inf
    curiosity_s: float = _CURIOUS_S

    def low(self, now: float) -> int:
        """The fewest in flight in the last WINDOW_S."""
        self.lows.append((now, self.load.take_low()))
        while self.lows[0][0] < now - WINDOW_S:
            self.lows.popleft()
        return min(low for _, low in self.lows)

    def seen(self, now: float) -> tuple[int, int]:
        """(load, Redis's time before) of the looks lately taken; (-1, 0) without enough of them."""
        while self.looks and self.looks[0][1] < now - 1.25 * _LOOKS_S:
            self.looks.popleft()
        if len(self.looks) < 2 or now - self.looks[0][1] < _LOOKS_S / 2:
            return -1, 0
        return max(look[2] for look in self.looks), self.looks[0][0]

    def demand(self, waiting: int, now: float) -> tuple[int, int]:
        """(requests to lease permits for, whether to hold idle ones as well)."""
        load = self.load
        if load.started != self.started:
            self.started, self.started_at = load.started, now
            self.got_at, self.curious_at, self.curiosity_s = None, -math.inf, _CURIOUS_S
        if load.circuit.state != "closed":
            return max(load.in_flight, int(load.circuit.state == "half-open")), 0
        if waiting and load.in_flight < load.limit and now - self.started_at > _IDLE_S:
            return load.in_flight, 0
        if waiting:
            # More than is here: what is fetched follows the quota, and both shall double.
            return 2 * load.in_flight + waiting, 1
        if not self.fetches:
            return load.in_flight, 0
        return load.in_flight or self._curiosity(now), 1

    def _curiosity(self, now: float) -> int:
        """1 to ask for a first permit: without one nothing is fetched that could show a demand.

        One that is not used within _IDLE_S is left to others, ever longer each time.
        """
        if not self.load.limit:
            self.got_at = None
            return int(now >= self.curious_at)
        if self.got_at is None:
            self.got_at = now
        if now - self.got_at < _IDLE_S:
            return 1
        if self.curious_at <= self.got_at:
            self.curious_at = now + self.curiosity_s
            self.curiosity_s = min(2 * self.curiosity_s, _CURIOUS_MAX_S)
        return 0


class Leases:
    """The leases of one process on the endpoints of its tier.

    Args:
        client: a redis-py asyncio client of its own that does not retry: a late answer is worth
            less than the next try.
        permits: given the caps, and fenced when a lease runs out.
        endpoints: the tier's endpoints.
        holder: this process's name, unique among all that live.
        looks: by endpoint name, what tells the load of its server.
        patience: seconds that the longest request to an endpoint may take, by its name.
        has_ended: whether a holder is known to have ended, so that its lease is of no use.
        fetches: whether it takes items from the queue; else it wants no permit without one.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        permits: Permits,
        endpoints: tuple[Endpoint, ...],
        holder: str,
        *,
        looks: Mapping[str, Look] | None = None,
        patience: Callable[[str], float] = lambda name: 0.0,
        has_ended: Callable[[str], bool] = lambda holder: False,
        fetches: bool = True,
    ) -> None:
        self._client: Any = client
        self._renew = client.register_script(RENEW)
        self._permits = permits
        self._leases = [_Lease(e, permits.load(e.name), fetches) for e in endpoints]
        self._holder = holder
        self._looks = looks or {}
        self._patience = patience
        self._has_ended = has_ended
        self._calls = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Take the first parts, and go on renewing them in the background."""
        for lease in self._leases:
            name = lease.endpoint.name
            self._permits.set_limit(name, 0)
            await self._learn(lease)
            await self._call(lease)
            self._tasks.append(asyncio.create_task(self._keep(lease), name=f"lease {name}"))

    async def close(self) -> None:
        """Give the parts back at once; nothing may be in flight any more."""
        await asyncio.gather(*map(ended, self._tasks))
        for lease in self._leases:
            if lease.fence is not None:
                lease.fence.cancel()
            name = lease.endpoint.name
            self._permits.set_limit(name, 0)
            try:
                await self._client.hdel(keys.endpoint(name), f"{keys.LEASE}{self._holder}")
            except (RedisError, OSError) as error:
                log.warning("the lease of endpoint %s is left to run out: %s", name, error)

    async def _keep(self, lease: _Lease) -> None:
        hungry = lease.load.hungry
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(HUNGRY_S)
                if not lease.audits:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(EVERY_S - HUNGRY_S):
                            await hungry.wait()
                hungry.clear()
                grant = await self._call(lease)
                lease.audits = bool(grant and grant.look)
                if grant and grant.look and not lease.looking:
                    lease.looking = True
                    # Beside the renewals, which must not wait for a server.
                    group.create_task(self._look(lease, grant.now))
                elif boottime() - lease.learned_at > _LEARN_S:
                    lease.learned_at = boottime()
                    group.create_task(self._learn(lease))

    async def _call(self, lease: _Lease) -> Grant | None:
        name, load = lease.endpoint.name, lease.load
        began = boottime()
        if lease.cap and began >= load.valid_until:
            self._fence(lease)  # the process was stopped: its timers come after this
        # The cap in force, read before what is in flight: what starts during the call is in it.
        cap = lease.cap
        demand, spare = lease.demand(self._permits.waiting, began)
        in_flight, low = load.in_flight, lease.low(began)
        look = self._looks.get(name)
        grace = max(self._patience(name), _PATIENCE_S) if look is not None and look.known else 0
        figures = [
            *(cap, in_flight, demand, spare, low, next(self._calls), lease.endpoint.first_n),
            *(round(seconds * 1000) for seconds in (TTL_S, MARGIN_S, WINDOW_S, grace)),
            *lease.seen(began),
        ]
        try:
            async with asyncio.timeout(EVERY_S * 3):
                answer = await self._renew(
                    keys=[keys.endpoint(name)], args=[self._holder, *figures, *lease.ended]
                )
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            log.warning("the lease of endpoint %s is not renewed: %r", name, error)
            return None
        except Exception:  # a worker whose renewals have ended would hold items and do nothing
            log.exception("the lease of endpoint %s is not renewed", name)
            return None
        grant = Grant.of(answer)
        if found := tuple(filter(self._has_ended, grant.silent)):
            load.hungry.set()  # for the next call, which tells it
        lease.ended = found
        # An answer older than the lease that it grants is worth nothing.
        if boottime() < began + TTL_S - MARGIN_S:
            self._take(lease, grant, began)
        return grant

    def _take(self, lease: _Lease, grant: Grant, began: float) -> None:
        lease.cap = grant.cap
        ends = began + TTL_S - MARGIN_S
        self._permits.set_limit(lease.endpoint.name, grant.cap, ends)
        if lease.fence is not None:
            lease.fence.cancel()
        loop = asyncio.get_running_loop()
        lease.fence = loop.call_later(ends - boottime(), self._fence, lease)

    def _fence(self, lease: _Lease) -> None:
        name = lease.endpoint.name
        log.error("the lease of endpoint %s ran out: its requests are aborted", name)
        lease.cap = 0
        self._permits.fence(name)

    async def _look(self, lease: _Lease, before: int) -> None:
        """Look once; `before` is Redis's time, and no later than the look."""
        try:
            load = await self._read(lease)
            if load is not None:
                lease.looks.append((before, boottime(), load))
        finally:
            lease.looking = False

    async def _learn(self, lease: _Lease) -> None:
        """Find out whether the server tells its load."""
        await self._read(lease)
        lease.learned_at = boottime()

    async def _read(self, lease: _Lease) -> int | None:
        look = self._looks.get(lease.endpoint.name)
        try:
            return None if look is None else await look.requests()
        except Exception:  # a look is worth less than the renewals beside it
            log.exception("looking at endpoint %s failed", lease.endpoint.name)
            return None
