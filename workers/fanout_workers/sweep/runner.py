"""Sweeps one endpoint: warms up, calibrates, then measures what the plan says."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Protocol

import httpx

from fanout import ChatRequest, Endpoint, Failure, Kind, Unavailable, Usage, UsageError
from fanout.server_metrics import ServerLoad
from fanout.sweep.analysis import best_of
from fanout.sweep.point import Point
from fanout.sweep.record import Sweep
from fanout.sweep.search import Plan
from fanout.sweep.shape import calibrated
from fanout.timeouts import MARGIN, PREFILL_S, needed
from fanout_workers.model import ModelClient
from fanout_workers.sweep.load import Steady, wave
from fanout_workers.sweep.pages import Pages
from fanout_workers.sweep.sender import Sender
from fanout_workers.sweep.source import Documents, MadeUp, Source

#: A prompt may be so much off its length before it is told.
_LENGTH_TOLERANCE = 0.02
#: How many Ns are measured once more before the search ends.
_CONFIRMATIONS = 3
#: How often a prompt's length is corrected by what the server counted.
_CORRECTIONS = 5
#: How often a request before the sweep is tried.
_PROBES = 5
#: Tokens/s of a sequence so low that the client's own timeout never ends a request.
_NO_SPEED = 1e-6


class Observer(Protocol):
    """Told of a sweep while it runs."""

    def began(self, runner: Runner, n: int, why: str) -> None:
        """The measurement of N begins."""

    def measured(self, runner: Runner, point: Point) -> None:
        """A point is done."""


@dataclass(slots=True)
class Now:
    """What goes on at this moment, for a display."""

    concurrency: int = 0
    why: str = ""
    began: float = 0.0
    tokens_before: float = 0.0
    first_load: ServerLoad | None = None
    load: ServerLoad | None = None


@dataclass(slots=True)
class Runner:
    """One endpoint's sweep.

    Attributes:
        sweep: takes the points; what it has already is not measured again.
        plan: says what to measure next.
        source: gives the requests.
        max_tokens: completion tokens one reply may take.
        timeout_s: for each request; None = derived from the work and what was measured.
        now: what goes on.
    """

    sweep: Sweep
    plan: Plan
    endpoint: Endpoint
    source: Source
    max_tokens: int
    observer: Observer
    timeout_s: float | None = None
    now: Now = field(default_factory=Now)
    sender: Sender | None = None

    async def run(self, transport: httpx.AsyncBaseTransport) -> None:
        """Sweep until the plan is done.

        Raises:
            Unavailable: the endpoint does not answer.
            UsageError: it refuses the requests.
        """
        client = ModelClient(_patient(self.endpoint), transport)
        pages = Pages(self.endpoint, transport, self.sweep.model)
        sender = self.sender = Sender(client, self.timeout_s or self._derived(1))
        try:
            duration_s = await self._warm_up(client, pages)
        except Failure as failure:
            text = f"endpoint {self.endpoint.name}: {failure.message}"
            raise (UsageError if failure.kind is Kind.REQUEST else Unavailable)(text) from None
        if self.sweep.work.how == "wave":
            await self._waves(sender, pages, duration_s)
        else:
            seen = self._seen
            async with Steady(
                sender, self.source, pages, duration_s=duration_s, seen=seen
            ) as steady:
                while (n := self._next()) is not None:
                    sender.timeout_s = self.timeout_s or self._derived(n)
                    self._take(await steady.measure(n, thorough=self.plan.thorough))
                if not self.plan.thorough:
                    await self._confirm(steady)
        self.sweep.complete = True

    async def _waves(self, sender: Sender, pages: Pages, duration_s: float) -> None:
        while (n := self._next()) is not None:
            sender.timeout_s = self.timeout_s or self._derived(n)
            point = await wave(
                n,
                sender,
                self.source,
                pages,
                rounds=self.sweep.work.waves,
                duration_s=duration_s,
                seen=self._seen,
            )
            duration_s = point.mean_latency_s or duration_s
            self._take(point)

    async def _confirm(self, steady: Steady) -> None:
        """Measure the N that was found once more, for longer; another one if it disappoints.

        A cache that fills up shows one request duration after N was raised.
        """
        for _ in range(_CONFIRMATIONS):
            found = best_of(self.sweep.points)
            if found is None or found.latency is not None:  # it was held long enough
                return
            self._begin(found.concurrency, "the best once more, for longer")
            point = await steady.measure(found.concurrency, thorough=True)
            self.sweep.points[self.sweep.points.index(found)] = point
            self.sweep.seconds += time.monotonic() - self.now.began
            self.observer.measured(self, point)

    def _next(self) -> int | None:
        step = self.plan.next(self.sweep.points)
        if step.concurrency is None:
            self.sweep.ended = step.why
            return None
        self._begin(step.concurrency, step.why)
        return step.concurrency

    def _begin(self, n: int, why: str) -> None:
        self.now = Now(n, why, time.monotonic(), self._tokens())
        self.observer.began(self, n, why)

    def tokens_per_s(self) -> float:
        """Tokens per second of the point that is being measured, so far."""
        passed = max(1e-3, time.monotonic() - self.now.began)
        first, last = self.now.first_load, self.now.load
        if first and last and first.generated is not None and last.generated is not None:
            return (last.generated - first.generated) / passed
        return (self._tokens() - self.now.tokens_before) / passed

    def _tokens(self) -> float:
        if self.sender is None:
            return 0.0
        return self.sender.streamed() if self.sender.streams else self.sender.tokens

    def _take(self, point: Point) -> None:
        self.sweep.points.append(point)
        self.sweep.seconds += time.monotonic() - self.now.began
        if isinstance(self.source, Documents):
            if self.source.repeated:
                self.sweep.note("documents were used more than once: the prefix cache knows them")
            if self.source.skipped:
                self.sweep.note(f"{self.source.skipped} rows could not be read")
        elif self.sweep.work.shape and point.requests and not point.failing:
            self._check_lengths(point, self.sweep.work.shape.output_tokens)
        self.observer.measured(self, point)

    def _check_lengths(self, point: Point, wanted: int) -> None:
        answered = point.requests - point.failed
        if point.how == "steady":
            return
        mean = point.tokens / answered
        if abs(mean - wanted) > _LENGTH_TOLERANCE * wanted:
            self.sweep.note(
                f"replies came to {mean:.0f} tokens instead of {wanted}: the server does not "
                "take ignore_eos"
            )

    def _seen(self, load: ServerLoad) -> None:
        self.now.first_load = self.now.first_load or load
        self.now.load = load

    def _derived(self, n: int) -> float:
        """The timeout at N: as a worker derives it, or longer where the server is known to queue.

        At worst N requests share what the best point gave.
        """
        best = max((point.tokens_per_s for point in self.sweep.points), default=0.0)
        least = needed(self.max_tokens, self.endpoint.min_tokens_per_s)
        shared = MARGIN * n * self.max_tokens / best + PREFILL_S if best else 0.0
        return math.ceil(max(self.endpoint.timeout_s or 0.0, least, shared))

    async def _warm_up(self, client: ModelClient, pages: Pages) -> float:
        """Make prompts as long as they shall be; returns about how long a request takes."""
        if isinstance(self.source, MadeUp):
            await self._calibrate(self.source, client, pages)
        if (load := await pages.load()) is not None and load.running:
            self.sweep.note(f"others had {load.running:.0f} requests in flight at the start")
        request = self.source.probe()
        began = time.monotonic()
        tokens = (await _usage(client, request)).completion or request.max_tokens
        took = time.monotonic() - began
        whole = self.max_tokens if isinstance(self.source, MadeUp) else tokens
        return max(1e-3, took * whole / tokens)

    async def _calibrate(self, source: MadeUp, client: ModelClient, pages: Pages) -> None:
        prompts, wanted = source.prompts, source.prompts.shape.prompt_tokens
        seen: list[tuple[int, int]] = []
        while True:
            counted = await pages.token_count(prompts.request().messages)
            if not counted:  # what it says that it has read tells, too
                counted = await self._prompt_tokens(source, client)
            if not counted:
                self.sweep.note("the server does not count prompt tokens: their length is a guess")
                return
            seen.append((prompts.words, counted))
            if counted == wanted or len(seen) > _CORRECTIONS:
                break
            prompts.words = calibrated(seen, wanted)
        if abs(counted - wanted) > _LENGTH_TOLERANCE * wanted:
            self.sweep.note(f"prompts have {counted} tokens instead of {wanted}")

    async def _prompt_tokens(self, source: MadeUp, client: ModelClient) -> int:
        try:
            usage = await _usage(client, source.prompts.request(1))
        except Failure as failure:
            if failure.kind is not Kind.REQUEST or not source.prompts.exact:
                raise
            # Not every server takes ignore_eos and min_tokens; if it is something else that it
            # refuses, it says so again.
            source.prompts.exact = False
            usage = await _usage(client, source.prompts.request(1))
            self.sweep.note("the server refuses ignore_eos: replies are as long as the model likes")
        return usage.prompt


async def _usage(client: ModelClient, request: ChatRequest) -> Usage:
    """Tokens of one request; an answer that is cut or blank is one, too.

    Raises:
        Failure: there was none, in a few tries where it was the server's failure.
    """
    tries = _PROBES
    while True:
        tries -= 1
        try:
            return (await client.complete(request)).usage
        except Failure as failure:
            if failure.kind.ends_as == "invalid":
                return failure.usage or Usage()
            if failure.kind is not Kind.SERVER or not tries:
                raise


def _patient(endpoint: Endpoint) -> Endpoint:
    """The endpoint with no timeout of its own: each N has another."""
    return endpoint.model_copy(update={"timeout_s": None, "min_tokens_per_s": _NO_SPEED})
