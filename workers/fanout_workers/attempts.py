"""One request of an item, tried until it gives an answer or its kind of failure has no tries left.

The answer to each kind of failure is `fanout.failures.POLICIES`; what is changed before the next
try is `mended` below.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fanout import ChatRequest, ConfigError, Failure, Invalid, Kind, Reply, Task, Usage
from fanout.failures import POLICIES
from fanout_workers.model import ModelClient
from fanout_workers.permits import Fenced, Permits, Unneeded
from fanout_workers.tally import Tally

#: Efforts at which a model reasons too little for a lower one to help.
_LEAST_EFFORT = ("none", "minimal", "low")


#: Failures after which another endpoint is the better one to ask.
_ELSEWHERE = frozenset({Kind.CONNECT, Kind.OVERLOAD, Kind.TIMEOUT, Kind.SERVER})


class Stopping(Exception):
    """This worker shuts down or has no quota: the item has to go back into the queue."""


class Unwanted(Exception):
    """The item's job has been cancelled."""


def _always() -> bool:
    return True


@dataclass(slots=True)
class Effort:
    """What the requests of one item have cost so far.

    Attributes:
        attempts: requests whose outcome says something about the item.
        retried: failures by kind, those mended by a retry included.
        usage: tokens, those of failed tries included.
        permit_s: seconds spent waiting for permits.
        endpoint: name of the endpoint asked last.
        avoid: name of the endpoint that failed last.
        in_flight: requests at the servers.
        reply: the last reply.
        wanted: whether the item still is; asked with a permit in hand, so it must not wait.
    """

    attempts: int = 0
    retried: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)
    permit_s: float = 0.0
    endpoint: str | None = None
    avoid: str | None = None
    in_flight: int = 0
    reply: Reply | None = None
    wanted: Callable[[], bool] = _always

    def is_fresh(self) -> bool:
        """Whether nothing is lost when another worker runs the item."""
        return not self.attempts and not self.in_flight


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
                return await self._try(task, current, payload, effort, request_id)
            except Failure as failure:
                failed[failure.kind] += 1
                effort.retried[failure.kind] += 1
                if failure.usage:
                    effort.usage += failure.usage
                # Asked for more than the model has room for: what went wrong came before.
                if failure.kind is Kind.REQUEST and answered is not None:
                    raise answered from failure
                policy = POLICIES[failure.kind]
                if failed[failure.kind] >= policy.tries:
                    raise
                if failure.kind.ends_as == "invalid":
                    answered = failure
                current = mended(request, current, failure)
                pause = policy.pause(failed[failure.kind], failure.retry_after)
                # Jitter: items that failed together must not come back together, and none before
                # the time that the server asked for.
                spread = (1.0, 1.25) if failure.retry_after is not None else (0.5, 1.0)
                await self.pause(pause * random.uniform(*spread))  # noqa: S311 - no secret
            except ConfigError as error:
                # The larger budget does not fit the endpoint's timeout_s.
                if answered is None:
                    raise
                raise answered from error

    async def _try(
        self, task: Task, request: ChatRequest, payload: Any, effort: Effort, request_id: str
    ) -> Any:
        try:
            reply = await self._send(request, effort, request_id, task.name)
        except Unneeded:
            raise Stopping from None
        except Fenced:
            raise Failure(Kind.CONNECT, "the worker lost its lease on the endpoint") from None
        except Failure as failure:
            # An overloaded or absent server says nothing about the item.
            if failure.kind not in (Kind.OVERLOAD, Kind.CONNECT):
                effort.attempts += 1
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
        self, request: ChatRequest, effort: Effort, request_id: str, kind: str
    ) -> Reply:
        waiting = self._permits.acquire(avoid=effort.avoid, fresh=effort.is_fresh)
        async with waiting as permit:
            if self._stopping.is_set():  # what waited for a permit is not in flight yet
                raise Stopping
            if not effort.wanted():
                raise Unwanted
            effort.permit_s += permit.waited_s
            effort.endpoint = name = permit.endpoint.name
            tried = f"{request_id}-{sum(effort.retried.values())}"
            effort.in_flight += 1
            flight = self._tallies[name].start(kind)
            try:
                reply = await self._clients[name].complete(request, tried, flight.meter)
            except Failure as failure:
                permit.failed(failure)
                flight.failed(failure)
                effort.avoid = name if failure.kind in _ELSEWHERE else None
                raise
            finally:
                effort.in_flight -= 1
                flight.close()
            permit.answered()
            flight.answered(reply)
        # Twice: the next request of each of a burst of replies is sent before the first of the
        # replies is looked into, which takes the longer the more there are.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return reply

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


def mended(first: ChatRequest, current: ChatRequest, failure: Failure) -> ChatRequest:
    """The request to send after `failure`, changed so that it can go better.

    Args:
        first: the item's request as the task kind built it.
        current: the request that failed.
        failure: how.
    """
    match failure.kind:
        case Kind.TRUNCATED:
            return replace(current, max_tokens=2 * current.max_tokens)
        case Kind.REASONING if current.reasoning_effort not in _LEAST_EFFORT:
            return replace(current, reasoning_effort="low")
        case Kind.REASONING:
            return replace(current, max_tokens=2 * current.max_tokens)
        case Kind.SCHEMA:
            asked = first.asking_again(failure.raw or "", failure.message)
            return replace(
                asked, max_tokens=current.max_tokens, reasoning_effort=current.reasoning_effort
            )
        case _:
            return current
