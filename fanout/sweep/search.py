"""Which N to measure next: a fixed list, or a search for the best; pure logic.

Both are functions of the points measured so far, in their order, so that an interrupted sweep
goes on where it was.

The search doubles N while throughput grows with it, slows down as it stops growing, and ends at a
fall that a second point confirms, at two points without gain, or where the server only queues.
Then it halves, on a log scale, the gaps beside the best point that can hold a better one. Neither
the knee algorithm nor a fit of the universal scalability law finds the best N of the published
curves: one of them still rises until its cliff.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fanout.sweep.analysis import BAD, GOOD, best_of
from fanout.sweep.point import Point

#: Elasticity of throughput from which N is doubled, and from which it grows by half.
_STEEP, _RISING, _FLAT = 0.6, 0.35, 0.15
#: Below this part of the peak one point is enough to call it a fall.
_SURE = 0.8
_MIDPOINTS = 4
_CLOSE = 1.15


@dataclass(frozen=True, slots=True)
class Step:
    """The next N, or the end; `why` says it to a person."""

    concurrency: int | None
    why: str


class Plan(Protocol):
    """Says what to measure next."""

    @property
    def thorough(self) -> bool:
        """Whether each point is wanted with its latencies, not only to find the best."""

    def next(self, points: Sequence[Point]) -> Step:
        """The step after `points`, which are in the order in which they were measured."""


@dataclass(frozen=True, slots=True)
class FixedList:
    """The Ns that a person named, in ascending order.

    It ends early only where more of it would be a waste: at a larger N than one at which most
    requests failed.
    """

    wanted: Sequence[int]
    thorough: bool = True

    def next(self, points: Sequence[Point]) -> Step:
        measured = {point.concurrency for point in points}
        hopeless = min((p.concurrency for p in points if 2 * p.failed > p.requests), default=None)
        left = [n for n in sorted(set(self.wanted)) if n not in measured]
        if not left:
            return Step(None, "the list is done")
        if hopeless is not None and left[0] > hopeless:
            return Step(None, f"most requests failed at N = {hopeless}: nothing larger is tried")
        return Step(left[0], "next in the list")


@dataclass(frozen=True, slots=True)
class Search:
    """Looks for the best N by itself.

    Args:
        first: where it starts.
        limit: the largest N that is tried.
    """

    first: int = 1
    limit: int = 1024
    midpoints: int = _MIDPOINTS
    thorough: bool = False

    def next(self, points: Sequence[Point]) -> Step:
        if not points:
            return Step(min(self.first, self.limit), "first")
        grown = _grown(points)
        if (step := self._growing(grown)) is not None:
            return step
        if len(points) - len(grown) >= self.midpoints:
            return Step(None, "enough points around the best")
        return _refine(points)

    def _growing(self, grown: Sequence[Point]) -> Step | None:
        last = grown[-1]
        if last.concurrency >= self.limit or _ended(grown):
            return None
        if len(grown) < 2:
            return self._step(last.concurrency, 2.0, "is the start")
        e = elasticity(_level(grown[:-1]), last)
        factor = 2.0 if e >= _STEEP else 1.5 if e >= _RISING else 1.25
        return self._step(last.concurrency, factor, f"brought {e:.2f} of its growth")

    def _step(self, n: int, factor: float, why: str) -> Step:
        # At least one more: 1.25 x 1 would be 1 for ever.
        return Step(min(self.limit, max(n + 1, round(n * factor))), f"N = {n} {why}")


def elasticity(a: Point, b: Point) -> float:
    """d ln X / d ln N between two points: 1 = throughput doubles with N, 0 = it stays."""
    if min(a.tokens_per_s, b.tokens_per_s) <= 0:
        return 0.0
    return math.log(b.tokens_per_s / a.tokens_per_s) / math.log(b.concurrency / a.concurrency)


def _grown(points: Sequence[Point]) -> list[Point]:
    """The points that went beyond all before them: the way up, without the midpoints."""
    grown: list[Point] = []
    for point in points:
        if not grown or point.concurrency > grown[-1].concurrency:
            grown.append(point)
    return grown


def _level(grown: Sequence[Point]) -> Point:
    """The last point that is no fall: what the next one is compared with."""
    peak = max(point.tokens_per_s for point in grown)
    return next(point for point in reversed(grown) if point.tokens_per_s >= BAD * peak)


def _ended(grown: Sequence[Point]) -> bool:
    last = grown[-1]
    peak = max(point.tokens_per_s for point in grown)
    if last.failing or last.tokens_per_s < _SURE * peak:
        return True
    if last.tokens_per_s < BAD * peak:
        # One measurement may be a bad moment of the server: unless its metrics say why it fell, it
        # takes a second one, a step further, to call it a fall.
        return last.crowded or grown[-2].tokens_per_s < BAD * peak
    if len(grown) < 2:
        return False
    flat = elasticity(grown[-2], last) < _FLAT
    if flat and last.queued:
        return True
    return flat and len(grown) > 2 and elasticity(grown[-3], grown[-2]) < _FLAT


def _refine(points: Sequence[Point]) -> Step:
    best = best_of(points)
    if best is None:
        return Step(None, "nothing was answered")
    ordered = sorted(points, key=lambda point: point.concurrency)
    place = ordered.index(best)
    gaps: list[tuple[float, int, str]] = []
    around = ordered[max(0, place - 1) : place + 2]
    steep = around[0] is not best and elasticity(around[0], best) >= _STEEP
    for low, high in itertools.pairwise(around):
        ratio, middle = high.concurrency / low.concurrency, _middle(low, high)
        if ratio > _CLOSE and low.concurrency < middle < high.concurrency:
            between = f"between {low.concurrency} and {high.concurrency}, beside the best so far"
            if _promises(best, low, high, middle, steep=steep):
                gaps.append((ratio, middle, between))
    if not gaps:
        return Step(None, "the best is known closely enough")
    _, middle, between = max(gaps)
    return Step(middle, between)


def _middle(low: Point, high: Point) -> int:
    return round(math.sqrt(low.concurrency * high.concurrency))


def _promises(best: Point, low: Point, high: Point, middle: int, *, steep: bool) -> bool:
    """Whether the N to use can lie in the gap: a larger one above, a smaller one below the best."""
    enough = GOOD * best.tokens_per_s
    if low is best:
        # Beyond a plateau nothing is to be had, but a steep rise to a level that is the same on
        # both sides may have a peak between them, unless the server is seen to queue.
        return high.failing or high.tokens_per_s < enough or (steep and not high.queued)
    # Throughput grows no faster than N.
    return low.tokens_per_s * middle / low.concurrency >= enough
