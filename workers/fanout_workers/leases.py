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

Demand (in flight and waiting) is shared max-min fairly, so what one process does not need, another
has within two calls.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from fanout import Endpoint, keys
from fanout.aio import ended
from fanout_workers.permits import Permits

log = logging.getLogger(__name__)

#: Seconds that a part is held without renewal.
TTL_S = 10.0
#: Seconds between two calls, and at least between two while requests wait for permits.
EVERY_S = 1.0
HUNGRY_S = 0.25
#: Seconds before its end at which a process fences itself: the abort has to reach the server.
MARGIN_S = 1.0

# KEYS endpoint; ARGV holder, cap, in flight, demand, ttl in ms, N of the configuration, number of
# the call. The fields are described in fanout.keys.
# Returns N, the part recorded, and the part that the holder should come down or up to.
_RENEW = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local me = 'l:' .. ARGV[1]
local n = tonumber(redis.call('HGET', KEYS[1], 'n') or ARGV[6])
local mine, others = tonumber(ARGV[4]), 0
local demands = {mine}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, 2) == 'l:' then
    local part, demand, expiry, call = string.match(all[i + 1], '(%d+) (%d+) (%d+) (%d+)')
    if all[i] == me then
      -- A call that was given up and arrives late must not shrink what a later one has granted.
      if tonumber(call) > tonumber(ARGV[7]) then
        return {n, part, part}
      end
    elseif tonumber(expiry) <= now then
      redis.call('HDEL', KEYS[1], all[i])
    else
      others = others + tonumber(part)
      demands[#demands + 1] = tonumber(demand)
    end
  end
end
-- Max-min fair: the smallest demands are met in full, the rest is divided evenly. What nobody
-- demands is held in equal parts, so that a first request finds a permit.
table.sort(demands)
local left, target = n, 0
for i = 1, #demands do
  local given = math.min(demands[i], math.floor(left / (#demands - i + 1)))
  if demands[i] == mine then
    target = given
  end
  left = left - given
end
target = target + math.ceil(left / #demands)
local part = math.max(tonumber(ARGV[2]), tonumber(ARGV[3]))
part = math.max(part, math.min(target, n - others))
redis.call('HSET', KEYS[1], me,
  string.format('%d %d %d %d', part, mine, now + ARGV[5], ARGV[7]))
return {n, part, target}
"""


@dataclass(frozen=True, slots=True)
class Grant:
    """What Redis answered: N of the endpoint, the part recorded, and the part to aim at."""

    n: int
    part: int
    target: int

    @property
    def cap(self) -> int:
        """Requests that the process may have in flight from now on."""
        return min(self.part, self.target)


class Leases:
    """The leases of one process on the endpoints of its tier.

    Args:
        client: a redis-py asyncio client of its own that does not retry: a late answer is worth
            less than the next try.
        permits: given the caps, and fenced when a lease runs out.
        endpoints: the tier's endpoints.
        holder: this process's name, unique among all that live.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        permits: Permits,
        endpoints: tuple[Endpoint, ...],
        holder: str,
    ) -> None:
        self._client: Any = client
        self._renew = client.register_script(_RENEW)
        self._permits = permits
        self._endpoints = endpoints
        self._holder = holder
        self._caps = dict.fromkeys((endpoint.name for endpoint in endpoints), 0)
        self._fences: dict[str, asyncio.TimerHandle] = {}
        self._calls = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Take the first parts, and go on renewing them in the background."""
        for endpoint in self._endpoints:
            self._permits.set_limit(endpoint.name, 0)
            await self._call(endpoint)
            task = asyncio.create_task(self._keep(endpoint), name=f"lease {endpoint.name}")
            self._tasks.append(task)

    async def close(self) -> None:
        """Give the parts back at once; nothing may be in flight any more."""
        await asyncio.gather(*map(ended, self._tasks))
        for fence in self._fences.values():
            fence.cancel()
        for endpoint in self._endpoints:
            self._permits.set_limit(endpoint.name, 0)
            try:
                await self._client.hdel(keys.endpoint(endpoint.name), f"{keys.LEASE}{self._holder}")
            except (RedisError, OSError) as error:
                log.warning("the lease of endpoint %s is left to run out: %s", endpoint.name, error)

    async def _keep(self, endpoint: Endpoint) -> None:
        while True:
            await asyncio.sleep(HUNGRY_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S - HUNGRY_S):
                    await self._permits.hungry.wait()
            self._permits.hungry.clear()
            await self._call(endpoint)

    async def _call(self, endpoint: Endpoint) -> None:
        name = endpoint.name
        began = time.monotonic()
        # The cap in force, read before what is in flight: what starts during the call is in it.
        cap = self._caps[name]
        in_flight = self._permits.in_flight()[name]
        try:
            async with asyncio.timeout(EVERY_S * 3):
                answer = await self._renew(
                    keys=[keys.endpoint(name)],
                    args=[
                        self._holder,
                        cap,
                        in_flight,
                        in_flight + self._permits.waiting,
                        round(TTL_S * 1000),
                        endpoint.concurrency,
                        next(self._calls),
                    ],
                )
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            log.warning("the lease of endpoint %s is not renewed: %r", name, error)
            return
        if time.monotonic() >= began + TTL_S - MARGIN_S:
            return  # the answer is older than the lease that it grants
        self._take(name, Grant(*map(int, answer)), began)

    def _take(self, name: str, grant: Grant, began: float) -> None:
        self._caps[name] = grant.cap
        self._permits.set_limit(name, grant.cap)
        if name in self._fences:
            self._fences[name].cancel()
        loop = asyncio.get_running_loop()
        left = began + TTL_S - MARGIN_S - time.monotonic()
        self._fences[name] = loop.call_later(left, self._fence, name)

    def _fence(self, name: str) -> None:
        log.error("the lease of endpoint %s ran out: its requests are aborted", name)
        self._caps[name] = 0
        self._permits.fence(name)
