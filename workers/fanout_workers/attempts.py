"""One request of an item, tried until it gives an answer or its kind of failure has no tries left.

The answer to each kind of failure is `fanout.failures.POLICIES`; what is changed before the next
try is `fanout_workers.mending`'s.

An outage must not use an item's tries up. So a failure is the item's own, and counts, only as far
as the endpoint is known to be well:

- `connect`, `overload`, and a refused key, model or path (401, 403, 404) never count;
- `server` and `timeout` do not count while the endpoint's circuit is not closed: not the failure
  that opens it, nor those of requests that had begun before that, nor those of probes;
- before one of these two ends an item, the endpoint is asked for a few tokens with the same permit.
  If it does not give them either, the failure does not count, and the circuit is opened;
- a server that closes the connection without a reply is away, most often. When it has done so
  `HANG_UPS` times to one item while it answered others, and gives a few tokens, it is the item.

What does not count waits for the circuit to close, and is bounded by `EXCUSED_TRIES` alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fanout import ChatRequest, ConfigError, Failure, Invalid, Kind, Reply, Task, Usage
from fanout.failures import EXCUSED_TRIES, POLICIES, Policy
from fanout_workers.mending import mended
from fanout_workers.model import ModelClient
from fanout_workers.permits import Fenced, Permit, Permits, Unneeded
from fanout_workers.tally import Tally

#: Failures after which another endpoint is the better one to ask.
_ELSEWHERE = frozenset({Kind.CONNECT, Kind.OVERLOAD, Kind.TIMEOUT, Kind.SERVER})
#: Failures that an item can cause as well as an outage can.
_DOUBTFUL = frozenset({Kind.TIMEOUT, Kind.SERVER})
#: Seconds that an endpoint may take for a few tokens before a failure that would end an item
#: counts as the endpoint's: as long as the shortest derived timeout, for it may have a queue.
_CANARY_S = 60.0


#: How often a server that is well may hang up on one item: what kills its connections may be a
#: proxy's restart, and comes again.
HANG_UPS = 20


class Stopping(Exception):
    """This worker shuts down or has no quota: the item has to go back into the queue."""


class Unwanted(Exception):
    """The item's job has been cancelled, or paused before the item began."""


def _always() -> bool:
    return True


@dataclass(slots=True, eq=False)
class Effort:
    """What the requests of one item have cost so far.

    Attributes:
        attempts: requests whose outcome says something about the item.
        excused: failures that were the endpoint's and not the item's.
        retried: failures by kind, those mended by a retry included.
        usage: tokens, those of failed tries included.
        permit_s: seconds spent waiting for permits.
        endpoint: name of the endpoint asked last.
        avoid: name of the endpoint that failed last.
        in_flight: requests at the servers.
        in_flight_s: seconds spent within requests, added up where several ran at once.
        hang_ups: connections that a server closed without a reply while its circuit was closed.
        reply: the last reply.
        wanted: whether the item still is; asked with a permit in hand, so it must not wait.
    """

    attempts: int = 0
    excused: int = 0
    retried: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)
    permit_s: float = 0.0
    endpoint: str | None = None
    avoid: str | None = None
    in_flight: int = 0
    in_flight_s: float = 0.0
    hang_ups: int = 0
    reply: Reply | None = None
    wanted: Callable[[], bool] = _always

    def is_fresh(self) -> bool:
        """Whether nothing is lost when another worker runs the item."""
        return not (self.attempts or self.in_flight or self.usage.completion)


class Asker:
    """Asks the endpoints of a tier.

    Args:
        permits: bounds what is in flight.
        clients: the model clients, by endpoint name.
        stopping: set when the worker begins to shut down.
        tallies: count what is sent and comes back, by endpoint name.
    """

    def __init__(
        self,
        permits: Permits,
        clients: Mapping[str, ModelClient],
        stopping: asyncio.Event,
        tallies: Mapping[str, Tally] | None = None,
    ) -> None:
        self._permits = permits
        self._tallies = tallies or {name: Tally(False) for name in clients}
        self._clients = clients
        self._stopping = stopping

    async def ask(
        self, task: Task, request: ChatRequest, payload: Any, effort: Effort, request_id: str
    ) -> Any:
        """The part that `task` makes of the model's answer to `request`.

        Args:
            task: validates the reply.
            request: the first request; later ones are derived from it.
            payload: the item's payload, for the validation.
            effort: takes what this costs.
            request_id: prefix of the id of each request in the server's log.

        Raises:
            Failure: the last one, when its kind has no tries left.
            Stopping: the worker shuts down, or loses its quota, while this is waiting.
            Unwanted: the item's job has been cancelled.
        """
        current, answered = request, None
        failed: Counter[Kind] = Counter()
        while True:
            if self._stopping.is_set():
                raise Stopping
            try:
                return await self._try(task, current, payload, effort, request_id, failed)
            except Failure as failure:
                failed[failure.kind] += not failure.excused
                effort.retried[failure.kind] += 1
                if failure.usage:
                    effort.usage += failure.usage
                if failure.excused:
                    await self._wait_out(failure, effort)
                    continue
                # Asked for more than the model has room for: what went wrong came before.
                if failure.kind is Kind.REQUEST and answered is not None:
                    raise answered from failure
                policy = POLICIES[failure.kind]
                if failure.final or failed[failure.kind] >= policy.tries:
                    raise
                if failure.kind.ends_as == "invalid":
                    answered = failure
                current = self._mended(request, current, failure, effort)
                await self._pause_for(policy, failed[failure.kind], failure)
            except ConfigError as error:
                # The larger budget does not fit the endpoint's timeout_s.
                if answered is None:
                    raise
                raise answered from error

    def _mended(
        self, first: ChatRequest, current: ChatRequest, failure: Failure, effort: Effort
    ) -> ChatRequest:
        if effort.endpoint is None:
            return current
        client = self._clients[effort.endpoint]
        return mended(first, current, failure, client.endpoint, client.room)

    async def _wait_out(self, failure: Failure, effort: Effort) -> None:
        """Wait after a failure that says nothing about the item."""
        effort.excused += 1
        if effort.excused >= EXCUSED_TRIES:
            raise failure
        load = self._permits.load(effort.endpoint) if effort.endpoint else None
        if load and load.circuit.state != "closed" and failure.retry_after is None:
            # The wait for a permit ends when the endpoint answers again, and no later.
            await self.pause(0)
            return
        policy = POLICIES[failure.kind if failure.kind is Kind.OVERLOAD else Kind.CONNECT]
        await self._pause_for(policy, effort.excused, failure)

    async def _pause_for(self, policy: Policy, failed: int, failure: Failure) -> None:
        pause = policy.pause(failed, failure.retry_after)
        # Jitter: items that failed together must not come back together, and none before the time
        # that the server asked for.
        spread = (1.0, 1.25) if failure.retry_after is not None else (0.5, 1.0)
        await self.pause(pause * random.uniform(*spread))  # noqa: S311 - no secret

    async def _try(
        self,
        task: Task,
        request: ChatRequest,
        payload: Any,
        effort: Effort,
        request_id: str,
        failed: Mapping[Kind, int],
    ) -> Any:
        try:
            reply = await self._send(request, effort, request_id, task.name, failed)
        except Unneeded:
            raise Stopping from None
        except Fenced:
            lost = Failure(Kind.CONNECT, "the worker lost its lease on the endpoint")
            lost.excused = True
            raise lost from None
        except Failure as failure:
            effort.attempts += not failure.excused
            raise
        effort.attempts += 1
        effort.reply = reply
        try:
            part = task.validate(reply, payload)
        except Invalid as error:
            refused = Failure(Kind.SCHEMA, str(error), raw=reply.content)
            refused.usage = reply.usage
            raise refused from None
        effort.usage += reply.usage
        return part

    async def _send(
        self,
        request: ChatRequest,
        effort: Effort,
        request_id: str,
        kind: str,
        failed: Mapping[Kind, int],
    ) -> Reply:
        waiting = self._permits.acquire(avoid=effort.avoid, fresh=effort.is_fresh)
        async with waiting as permit:
            if self._stopping.is_set():  # what waited for a permit is not in flight yet
                raise Stopping
            if not effort.wanted():
                raise Unwanted
            effort.permit_s += permit.waited_s
            effort.endpoint = name = permit.endpoint.name
            client = self._clients[name]
            tried = f"{request_id}-{sum(effort.retried.values())}"
            flight = self._tallies[name].start(kind)
            began = time.monotonic()
            effort.in_flight += 1
            reply: Reply | None = None
            try:
                reply = await client.complete(request, tried, flight.meter)
            except Failure as failure:
                permit.failed(failure)
                flight.failed(failure)
                effort.avoid = name if failure.kind in _ELSEWHERE else None
                failure.excused = await self._is_excused(failure, effort, permit, client, failed)
                raise
            except asyncio.CancelledError:
                if flight.meter.chunks:  # of a stream that is aborted, what came was made
                    effort.usage += Usage(completion=flight.meter.chunks)
                raise
            finally:
                effort.in_flight -= 1
                effort.in_flight_s += time.monotonic() - began
                flight.close()
            permit.answered()
            flight.answered(reply)
        # Twice: the next request of each of a burst of replies is sent before the first of the
        # replies is looked into, which takes the longer the more there are.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return reply

    async def _is_excused(
        self,
        failure: Failure,
        effort: Effort,
        permit: Permit,
        client: ModelClient,
        failed: Mapping[Kind, int],
    ) -> bool:
        """Whether a failure says nothing about the item; see the top of this module."""
        doubtful = failure.kind in _DOUBTFUL or failure.hung_up
        if not doubtful:
            return failure.is_endpoints
        circuit = permit.load.circuit
        if circuit.state != "closed" or circuit.epoch != permit.epoch:
            return True
        effort.hang_ups += failure.hung_up
        tries, done = POLICIES[failure.kind].tries, failed[failure.kind] + 1
        if failure.hung_up:
            tries, done = HANG_UPS, effort.hang_ups
        if done < tries:
            return failure.hung_up
        try:
            await client.canary(_CANARY_S)
        except Failure as silent:
            if circuit.epoch == permit.epoch:
                circuit.trip(f"not even a few tokens: {silent.message}", silent)
            return True
        failure.final = True
        return False

    async def pause(self, seconds: float) -> None:
        """Wait about that long, without a permit; raises `Stopping` when the worker shuts down."""
        if not seconds:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise Stopping
