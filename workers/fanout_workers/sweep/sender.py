"""Sends requests to one endpoint, each once, and keeps account of what is in flight."""

from __future__ import annotations

import asyncio
import time

from fanout import Failure, Kind, Reply, Usage
from fanout.sweep.samples import Sample
from fanout_workers.model import Meter, ModelClient
from fanout_workers.sweep.source import Ask

#: Weight of one reply in what is known of the tokens in a chunk.
_MEMORY = 0.1


class Sender:
    """Sends requests and turns each into a sample; nothing is tried again.

    Args:
        client: the endpoint's.
        timeout_s: given to each request; may be changed at any time for those that follow.

    Attributes:
        ended: set whenever a request has ended; whoever waits for it clears it.
        tokens: completion tokens of all requests that ended.
        slowest_s: the longest that a request has taken.
    """

    def __init__(self, client: ModelClient, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.ended = asyncio.Event()
        self.tokens = 0
        self.slowest_s = 0.0
        self._client = client
        self._meters: set[_Timed] = set()
        self._tokens_per_chunk = 1.0
        self._busy = 0.0
        self._since = time.monotonic()

    @property
    def in_flight(self) -> int:
        """Requests in flight now."""
        return len(self._meters)

    @property
    def streams(self) -> bool:
        """Whether replies come token by token."""
        return self._client.endpoint.stream

    @property
    def silent(self) -> int:
        """Requests in flight of which nothing has come yet; all, where nothing is streamed."""
        return sum(not timed.meter.chunks for timed in self._meters)

    def busy_s(self) -> float:
        """Request-seconds so far: their growth over a stretch is the mean in flight in it."""
        self._account()
        return self._busy

    def streamed(self) -> float:
        """Completion tokens that have come so far, those of requests in flight included.

        Of what is in flight only the chunks are known; how many tokens are in one, the replies that
        ended last tell.
        """
        flying = sum(timed.meter.chunks for timed in self._meters)
        return self.tokens + flying * self._tokens_per_chunk

    def started_before(self, moment: float) -> int:
        """Requests in flight that were started before `moment` of the monotonic clock."""
        return sum(timed.started < moment for timed in self._meters)

    async def send(self, ask: Ask) -> Sample:
        """Send one request and wait for its end; a failure is a sample, too."""
        timed = _Timed(Meter(), time.monotonic())
        self._account()
        self._meters.add(timed)
        try:
            return await self._send(ask, timed)
        finally:
            self._account()
            self._meters.discard(timed)
            self.slowest_s = max(self.slowest_s, time.monotonic() - timed.started)
            self.ended.set()

    async def _send(self, ask: Ask, timed: _Timed) -> Sample:
        reply: Reply | None = None
        failure: Failure | None = None
        try:
            async with asyncio.timeout(self.timeout_s):
                reply = await self._client.complete(ask.request, meter=timed.meter)
        except TimeoutError:
            failure = Failure(Kind.TIMEOUT, f"no reply in {self.timeout_s:.0f} s")
        except Failure as caught:
            failure = caught
        return self._sample(ask, timed, time.monotonic(), reply, failure)

    def _sample(
        self, ask: Ask, timed: _Timed, ended: float, reply: Reply | None, failure: Failure | None
    ) -> Sample:
        usage = reply.usage if reply else failure.usage if failure else None
        usage = usage or Usage()
        # A server that does not count its tokens has been streamed from, or nothing can be said.
        tokens = usage.completion or timed.meter.chunks
        # An answer that was cut, or of no use, has cost its tokens all the same.
        answered = failure is None or (failure.kind.ends_as == "invalid" and tokens > 0)
        kind = failure.kind if failure else None
        valid, unusable, words = None, None, failure.message if failure else ""
        if ask.judge is not None:
            valid, unusable, said = ask.judge(reply, kind if answered else None)
            words = words or said
        if answered and timed.meter.chunks:
            this = tokens / timed.meter.chunks
            self._tokens_per_chunk += _MEMORY * (this - self._tokens_per_chunk)
        if not answered:
            tokens = 0
        self.tokens += tokens
        return Sample(
            started=timed.started,
            ended=ended,
            tokens=tokens,
            prompt=usage.prompt,
            cached=usage.cached,
            ttft_s=reply.ttft_s if reply else timed.meter.ttft_s,
            failure=None if answered else kind,
            words=words,
            unusable=unusable,
            valid=valid,
        )

    def _account(self) -> None:
        now = time.monotonic()
        self._busy += len(self._meters) * (now - self._since)
        self._since = now


class _Timed:
    """The meter of a request in flight, and when it was started."""

    __slots__ = ("meter", "started")

    def __init__(self, meter: Meter, started: float) -> None:
        self.meter = meter
        self.started = started
