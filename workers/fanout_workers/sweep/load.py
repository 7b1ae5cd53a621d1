"""Holds N requests in flight and measures: in waves, or in steady state.

A *wave* is what the published sweeps measure: N requests at once, from the start of the first to
the end of the last; with several rounds, rounds x N requests, N at a time. *Steady* holds N without
end and measures a window once the start is behind it; N then changes without a restart.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from fanout import Kind
from fanout.aio import ended
from fanout.server_metrics import ServerLoad
from fanout.sweep.point import Point
from fanout.sweep.samples import Sample, Window, steady_point, wave_point
from fanout_workers.sweep.pages import Pages, Watch
from fanout_workers.sweep.sender import Sender
from fanout_workers.sweep.source import Ask, Source

#: Of one mean request duration D: what is waited for after a change of N, and what is measured.
_SETTLE, _MEASURE = 0.4, 0.6
#: Nothing is waited for longer than so many D.
_PATIENCE = 3.0
#: Readings of the server's /metrics in one D, and the bounds of their distance in seconds.
_READINGS, _READ_MIN_S, _READ_MAX_S = 15, 0.05, 1.0
#: After these a slot waits before it asks again: a server that refuses at once would be flooded.
_REFUSED = (Kind.CONNECT, Kind.OVERLOAD)
_REFUSED_PAUSE_S = 0.25
#: Within that time after a change all new requests are on their way.
_START_S = 0.05
#: More requests than this part, beside ours, and the server is not ours alone.
_OTHERS = 0.05


def every_s(duration_s: float) -> float:
    """How often the server is asked for its load while requests take `duration_s`."""
    return min(_READ_MAX_S, max(_READ_MIN_S, duration_s / _READINGS))


async def wave(
    n: int,
    sender: Sender,
    source: Source,
    pages: Pages,
    *,
    rounds: int,
    duration_s: float,
    seen: Callable[[ServerLoad], object],
) -> Point:
    """Send `rounds` x `n` requests, `n` at a time.

    Args:
        n: how many to hold.
        sender: sends them.
        source: gives them.
        pages: the server's, to open connections and to read its load.
        rounds: requests for each of the `n` slots, on average.
        duration_s: about how long a request takes.
        seen: called with each reading of the server's load.
    """
    # Made before the clock runs, and the connections opened: all of them start at once.
    first = [source.ask() for _ in range(n)]
    await pages.connect(n)
    rest = (source.ask() for _ in range(n * (rounds - 1)))
    asks: Iterator[Ask] = itertools.chain(first, rest)
    samples: list[Sample] = []

    async def slot() -> None:
        for ask in asks:
            samples.append(await sender.send(ask))

    async with Watch(pages, every_s(duration_s), seen) as watch:
        async with asyncio.TaskGroup() as group:
            for _ in range(n):
                group.create_task(slot())
        return wave_point(n, samples, server=watch.summary())


class Steady:
    """Holds N requests in flight for as long as the block lasts, at one N after another.

    Args:
        sender: sends them.
        source: gives them.
        pages: the server's.
        duration_s: about how long a request takes at first.
        seen: called with each reading of the server's load.
    """

    def __init__(
        self,
        sender: Sender,
        source: Source,
        pages: Pages,
        *,
        duration_s: float,
        seen: Callable[[ServerLoad], object],
    ) -> None:
        self._sender = sender
        self._source = source
        self._pages = pages
        self._duration_s = duration_s
        self._seen = seen
        self._wanted = 0
        self._slots: set[asyncio.Task[None]] = set()
        self._samples: list[tuple[Sample, bool]] = []
        self._error: BaseException | None = None
        self._measured = False

    async def __aenter__(self) -> Steady:
        return self

    async def __aexit__(self, *_: object) -> None:
        # What is in flight is aborted: closing its connection tells the server.
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*(ended(slot) for slot in self._slots))

    async def measure(self, n: int, *, thorough: bool) -> Point:
        """The point of `n` requests in flight.

        Args:
            n: how many to hold.
            thorough: let every request that began before end first, so that the server's KV cache
                has grown to this N and latencies are this N's; else about half as long.

        Raises:
            FanoutError: what the source or the endpoint's settings raised.
        """
        changed = time.monotonic()
        await self._pages.connect(n - len(self._slots))
        less = n < len(self._slots)
        self._hold(n)
        async with Watch(self._pages, every_s(self._duration_s), self._seen) as watch:
            if less:
                changed = await self._lowered(n, changed)
            count = await self._settle(changed, thorough=thorough)
            self._samples.clear()
            watch.clear()
            first, busy = await count(), self._sender.busy_s()
            began = time.monotonic()
            # Slots that were let go together end together, and read their next prompts together:
            # only a whole round of them is typical. New ones among old ones are spread.
            await self._fill(began, n if thorough or less else max(1, n // 4))
            last, seconds = await count(), time.monotonic() - began
            window = Window(
                seconds=seconds,
                in_flight=(self._sender.busy_s() - busy) / seconds,
                since=changed,
                tokens=count.rate(first, last) * seconds if first and last else None,
                counted_by=count.name,
            )
            whole = [sample for sample, is_whole in self._samples if is_whole]
            point = steady_point(n, whole, window, server=watch.summary())
        if point.mean_latency_s is not None:
            self._duration_s = point.mean_latency_s
            self._measured = True
        return point

    def _hold(self, n: int) -> None:
        self._wanted = n
        for _ in range(n - len(self._slots)):
            slot = asyncio.create_task(self._slot(), name="sweep slot")
            self._slots.add(slot)
            slot.add_done_callback(self._slot_ended)

    async def _slot(self) -> None:
        ask = self._source.first_ask()
        while True:
            sample = await self._sender.send(ask)
            self._samples.append((sample, ask.whole))
            if ask.whole and not self._measured and sample.failure is None:
                self._duration_s = sample.latency_s  # until now it was a guess
            if len(self._slots) > self._wanted:
                # Out at once: another slot that ends now has to see that this one is gone.
                if (this := asyncio.current_task()) is not None:
                    self._slots.discard(this)
                return
            if sample.failure in _REFUSED:
                await asyncio.sleep(_REFUSED_PAUSE_S)
            ask = self._source.ask()

    def _slot_ended(self, slot: asyncio.Task[None]) -> None:
        self._slots.discard(slot)
        if not slot.cancelled() and (error := slot.exception()) is not None:
            self._error = error
            self._sender.ended.set()

    async def _lowered(self, n: int, since: float) -> float:
        """Return when N has come down and the requests that ran at the higher one have ended.

        They were slower: what is measured beside them would be theirs.
        """
        await self._until(lambda: self._sender.in_flight <= n, since)
        lowered = time.monotonic()
        await self._until(lambda: not self._sender.started_before(lowered), lowered)
        return lowered

    async def _settle(self, changed: float, *, thorough: bool) -> _Count:
        """Return when the start is over, with the best way to count tokens.

        Tokens that are counted as they come need no more than that every request has begun to
        answer. Without, nothing is known of a request before it ends, and those that began at
        another N would tell of that one: they have to end first.
        """

        def settled() -> bool:
            passed = (time.monotonic() - changed) / self._duration_s
            if passed < _SETTLE:
                return False
            return passed >= 1.0 or not (self._sender.streams and self._sender.silent)

        await self._until(settled, changed)
        count = _Count("server", self._sender, self._pages)
        if await count() is None and self._sender.streams:
            count.name = "stream"
        elif await count() is None:
            count.name = "little"
        if thorough or count.name == "little":
            await self._until(lambda: not self._sender.started_before(changed + _START_S), changed)
        return count

    async def _fill(self, began: float, enough: int) -> None:
        """Return when the window is long and `enough` requests have ended in it."""

        def full() -> bool:
            long = time.monotonic() >= began + _MEASURE * self._duration_s
            return long and sum(whole for _, whole in self._samples) >= enough

        await self._until(full, began)

    async def _until(self, condition: Callable[[], bool], since: float) -> None:
        """Return when `condition` holds, or when no patience is left."""
        step = self._duration_s / 20
        while not condition():
            if self._error is not None:
                raise self._error
            if time.monotonic() > since + _PATIENCE * max(self._duration_s, self._sender.slowest_s):
                return
            self._sender.ended.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(step):
                    await self._sender.ended.wait()


@dataclass(slots=True)
class _Count:
    """Completion tokens so far, as (moment, count); None where nobody counts them as they come.

    The server's own count goes before the chunks of the streams: a chunk can hold several tokens,
    more of them the busier the server is.
    """

    name: Literal["stream", "server", "little"]
    sender: Sender
    pages: Pages

    async def __call__(self) -> tuple[float, float] | None:
        if self.name == "stream":
            return time.monotonic(), self.sender.streamed()
        if self.name == "little":
            return None
        load = await self.pages.load()
        if load is None or load.generated is None:
            return None
        at_server = (load.running or 0) + (load.waiting or 0)
        # Others use the server as well: its count is not ours.
        if abs(at_server - self.sender.in_flight) > max(2.0, _OTHERS * self.sender.in_flight):
            return None
        return time.monotonic(), load.generated

    def rate(self, first: tuple[float, float], last: tuple[float, float]) -> float:
        """Completion tokens per second between two counts."""
        return (last[1] - first[1]) / (last[0] - first[0])
