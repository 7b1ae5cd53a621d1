"""`concurrency = "auto"`: one worker process of an endpoint finds and holds its N.

Once a poll, each process writes into Redis what it has sent to the endpoint and got back since it
began. A poll comes every few seconds, more often where requests are short: what there is to learn
comes with each request's duration, not with the clock. The one that holds the lock, the leader,
adds that up, reads the server's metrics where there are any, and asks the controller
(`fanout_workers.auto`) for N. The leases take it from there. When the leader dies, its lock ends
after three of the longest polls, and the next process goes on from the N in force.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import redis.asyncio
from redis.exceptions import RedisError

from fanout import Endpoint, Unavailable, keys
from fanout.aio import ended
from fanout.server_metrics import ServerLoad
from fanout.store import Decided, Store
from fanout_workers.auto import (
    Bounds,
    Controller,
    Decision,
    Gauges,
    Observation,
    Remembered,
    Streams,
    pace_s,
)
from fanout_workers.server_page import ServerPage
from fanout_workers.tally import COUNTERS, Tally, Totals, totals_of

log = logging.getLogger(__name__)

#: The lock, and what a process that says nothing more counts, last for so many polls at their
#: longest.
_POLLS = 3
#: Seconds after which the N that a leader left says no more of the server than one remembered.
_HELD_S = 600
#: Seconds after which a decision that is not worth a note is kept all the same: a sign of life.
_QUIET_S = 120.0

# KEYS leader; ARGV holder, ttl in ms. Whether the holder leads now.
_LEAD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS leader; ARGV holder. Lets go of the lock, if it is the holder's.
_RESIGN = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
"""


@dataclass(slots=True)
class _Reading:
    """What was last read of one process."""

    totals: Totals
    mean_in_flight: float
    changed_at: float


class Crowd:
    """Adds up what all processes of an endpoint have written.

    Args:
        patience_s: how long a process that says nothing more counts.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._last: dict[str, _Reading] = {}
        self._began = False
        self.kind = ""

    def observe(self, at: float, seen: Mapping[str, Totals]) -> tuple[Observation, list[str]]:
        """The observation since the last one, without gauges, and who says nothing any more."""
        gone: list[str] = []
        sums: dict[str, float] = dict.fromkeys(COUNTERS, 0.0)
        in_flight, mean, retry_after_s, unstarted, stalled = 0, 0.0, 0.0, 0, 0
        streams = bool(seen)
        for holder, totals in seen.items():
            reading = self._read(at, holder, totals, sums)
            if at - reading.changed_at > self._patience_s:
                gone.append(holder)
                continue
            in_flight += totals.in_flight
            mean += reading.mean_in_flight
            retry_after_s = max(retry_after_s, totals.retry_after_s)
            unstarted, stalled = unstarted + totals.unstarted, stalled + totals.stalled
            streams = streams and totals.streams
            self.kind = totals.kind or self.kind
        for holder in self._last.keys() - seen.keys():
            del self._last[holder]
        self._began = True
        chunks = round(sums["chunks"] * self._tokens_per_chunk(seen))
        return Observation(
            at=at, in_flight=in_flight, mean_in_flight=mean, completed=round(sums["completed"]),
            tokens=round(sums["tokens"]), latency_s=sums["latency_s"],
            timeouts=round(sums["timeouts"]), overloads=round(sums["overloads"]),
            retry_after_s=retry_after_s,
            streams=Streams(chunks, unstarted, stalled, round(sums["begun"])) if streams else None,
        ), gone  # fmt: skip

    def _read(self, at: float, holder: str, totals: Totals, sums: dict[str, float]) -> _Reading:
        reading = self._last.get(holder)
        if reading is None or totals.at < reading.totals.at:  # new, or begun anew
            if self._began:  # all that it has counted is news
                for name in COUNTERS:
                    sums[name] += getattr(totals, name)
            reading = self._last[holder] = _Reading(totals, float(totals.in_flight), at)
            return reading
        passed = totals.at - reading.totals.at
        if passed <= 0:
            return reading
        for name in COUNTERS:
            sums[name] += max(0.0, getattr(totals, name) - getattr(reading.totals, name))
        reading.mean_in_flight = (totals.area - reading.totals.area) / passed
        reading.totals, reading.changed_at = totals, at
        return reading

    def _tokens_per_chunk(self, seen: Mapping[str, Totals]) -> float:
        # A server under load may send several tokens in one piece.
        chunks = sum(totals.ended_chunks for totals in seen.values())
        tokens = sum(totals.tokens for totals in seen.values())
        return tokens / chunks if chunks else 1.0


class Leader:
    """Keeps N of one endpoint, as long as this process is the one to do it.

    Args:
        client: a redis-py asyncio client that returns bytes.
        store: takes the decisions.
        endpoint: with `concurrency = "auto"`.
        tally: what this process counts.
        page: the server's metrics.
        holder: this process's name, unique among all that live.
        poll_s: seconds between two looks, at most.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        store: Store,
        endpoint: Endpoint,
        tally: Tally,
        page: ServerPage,
        holder: str,
        poll_s: float,
    ) -> None:
        self._redis: Any = client
        self._lead = client.register_script(_LEAD)
        self._resign = client.register_script(_RESIGN)
        self._store = store
        self._endpoint = endpoint
        self._name = endpoint.name
        self._tally = tally
        self._page = page
        self._holder = holder
        self._poll_s = poll_s
        self._controller: Controller | None = None
        self._held = f"{keys.leader(self._name)}:held"
        self._crowd = Crowd(_POLLS * poll_s)
        self._last = Totals()
        #: Seconds until the next poll.
        self.pause_s = poll_s
        self._kept_at = 0.0

    @property
    def leads(self) -> bool:
        """Whether this process decides at present."""
        return self._controller is not None

    async def run(self) -> None:
        """Poll until cancelled."""
        due = time.monotonic()
        while True:
            try:
                await self.poll(time.monotonic())
            except (RedisError, OSError, Unavailable) as error:
                log.warning("the N of endpoint %s is not looked at: %r", self._name, error)
            due = max(due + self.pause_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def poll(self, now: float) -> Decision | None:
        """Tell what this process has seen; decide, if it leads. `now` in seconds of any clock."""
        totals = self._tally.read()
        self._pace(totals)
        await self._redis.hset(keys.seen(self._name), self._holder, orjson.dumps(asdict(totals)))
        ttl_ms = round(_POLLS * self._poll_s * 1000)
        if not await self._lead(keys=[keys.leader(self._name)], args=[self._holder, ttl_ms]):
            self._controller = None
            return None
        seen, gone = self._crowd.observe(now, await self._seen())
        if gone:
            await self._redis.hdel(keys.seen(self._name), *gone)
        info = await self._store.endpoint(self._name)
        if info.concurrency is not None:  # set by hand: that counts, and teaches nothing
            self._controller = None
            return None
        if self._controller is None:
            self._controller = await self._take_over(info.auto)
            log.info("this worker finds the N of endpoint %s, from %d", self._name,
                     self._controller.n)  # fmt: skip
            await self._keep(self._controller.observe(await self._with_gauges(seen)), "took over: ")
            return None
        await self._redis.set(self._held, 1, ex=_HELD_S)
        decision = self._controller.observe(await self._with_gauges(seen))
        # Nothing in flight is nothing to tell: a worker may wait for work for weeks.
        if decision.noted or (seen.in_flight and time.monotonic() - self._kept_at >= _QUIET_S):
            await self._keep(decision)
        return decision

    def _pace(self, totals: Totals) -> None:
        """Look more often where requests are short."""
        if ended := totals.completed - self._last.completed:
            duration_s = (totals.latency_s - self._last.latency_s) / ended
            self.pause_s = pace_s(duration_s, self._poll_s)
        self._last = totals

    async def close(self) -> None:
        """Let another process lead at once."""
        try:
            await self._resign(keys=[keys.leader(self._name)], args=[self._holder])
            await self._redis.hdel(keys.seen(self._name), self._holder)
        except (RedisError, OSError) as error:
            log.warning("the N of endpoint %s is left to another worker: %r", self._name, error)

    async def _seen(self) -> dict[str, Totals]:
        raw = await self._redis.hgetall(keys.seen(self._name))
        return {holder.decode(): totals_of(orjson.loads(value)) for holder, value in raw.items()}

    async def _with_gauges(self, seen: Observation) -> Observation:
        load = await self._page.read()
        return Observation(
            **{name: getattr(seen, name) for name in Observation.__slots__ if name != "gauges"},
            gauges=None if load is None else gauges_of(load),
        )

    async def _take_over(self, running: int | None) -> Controller:
        endpoint = self._endpoint
        bounds = Bounds(start=endpoint.start_concurrency, most=endpoint.max_concurrency)
        raw = await self._redis.hgetall(keys.memory(self._name))
        kind = (self._crowd.kind or raw.get(b"last", b"").decode()).encode()
        remembered = Remembered(**orjson.loads(raw[kind])) if kind and kind in raw else None
        # The N in force says something only as long as somebody has held it of late.
        held = await self._redis.exists(self._held)
        return Controller(bounds, remembered, running if held else None)

    async def _keep(self, decision: Decision, prefix: str = "") -> None:
        self._kept_at = time.monotonic()
        controller = self._controller
        if controller is None:
            return
        decided = Decided(
            at=time.time(), n=decision.n, before=decision.before, phase=decision.phase,
            reason=prefix + decision.reason, inputs=decision.inputs, by=self._holder,
        )  # fmt: skip
        figures = " ".join(f"{name}={value:g}" for name, value in decision.inputs.items())
        log.info("endpoint %s: N %d -> %d (%s: %s) %s", self._name, decided.before, decided.n,
                 decided.phase, decided.reason, figures)  # fmt: skip
        await self._store.steer(self._name, decided)
        kind = self._crowd.kind
        if kind and decision.inputs.get("in_flight"):
            memory = orjson.dumps(asdict(controller.memory))
            await self._redis.hset(keys.memory(self._name), mapping={kind: memory, "last": kind})


def gauges_of(load: ServerLoad) -> Gauges | None:
    """The server's load as the controller wants it; None where it does not tell what waits."""
    if load.running is None or load.waiting is None:
        return None
    return Gauges(
        load.running, load.waiting, load.kv, load.preemptions or 0.0, load.generated, load.prompts
    )  # fmt: skip


class Leaders:
    """The leaders of one process, one for each endpoint with `concurrency = "auto"`.

    Args:
        client, store: as for `Leader`.
        endpoints: the tier's endpoints.
        tallies: what this process counts, by endpoint name.
        pages: the servers' metrics, by endpoint name.
        holder, poll_s: as for `Leader`.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        store: Store,
        endpoints: tuple[Endpoint, ...],
        tallies: Mapping[str, Tally],
        pages: Mapping[str, ServerPage],
        holder: str,
        poll_s: float,
    ) -> None:
        self._store = store
        self._fixed = [one.name for one in endpoints if one.concurrency != "auto"]
        self._leaders = [
            Leader(client, store, one, tallies[one.name], pages[one.name], holder, poll_s)
            for one in endpoints
            if one.concurrency == "auto"
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Begin to poll. An N that a controller has left for an endpoint with a fixed one goes."""
        for name in self._fixed:
            try:
                await self._store.unsteer(name)
            except Unavailable as error:
                log.warning("%s", error)
        self._tasks = [asyncio.create_task(leader.run(), name="hold N") for leader in self._leaders]

    async def close(self) -> None:
        """Stop polling, and let others lead."""
        await asyncio.gather(*map(ended, self._tasks))
        for leader in self._leaders:
            await leader.close()
