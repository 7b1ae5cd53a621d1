"""The search finds the best N of curves it has not seen, with few points."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable

import pytest

from fanout.sim.published import TABLES
from fanout.sweep.analysis import analyse
from fanout.sweep.point import Point, Server
from fanout.sweep.search import FixedList, Plan, Search, elasticity

Measure = Callable[[int], Point]


def measured_by(plan: Plan, measure: Measure, limit: int = 40) -> list[Point]:
    points: list[Point] = []
    while (n := plan.next(points).concurrency) is not None:
        assert n not in {point.concurrency for point in points}
        assert len(points) < limit
        points.append(measure(n))
    return points


def past_the_last(alias: str) -> Callable[[int], float]:
    """The published aggregate at any N; beyond the last row it falls on."""
    rows = {row.concurrency: row.tokens_per_s for row in TABLES[alias]}
    ns = sorted(rows)

    def rate(n: int) -> float:
        at = bisect_left(ns, n)
        if at == len(ns):
            return rows[ns[-1]] * (ns[-1] / n) ** 0.5
        if ns[at] == n:
            return rows[n]
        low, high = ns[at - 1], ns[at]
        # The time of one step is linear between two rows.
        steps = low / rows[low], high / rows[high]
        return n / (steps[0] + (n - low) / (high - low) * (steps[1] - steps[0]))

    return rate


def point(n: int, rate: float, running: float | None = None) -> Point:
    server = None
    if running is not None:
        server = Server(running_max=min(n, running), waiting_mean=max(0.0, n - running))
    return Point(concurrency=n, how="steady", requests=n, tokens_per_s=rate, server=server)


def cliff_at(peak: int, top: float) -> Measure:
    return lambda n: point(n, top * n / peak if n <= peak else 0.6 * top)


@pytest.mark.parametrize(("alias", "most"), [("dense", 14), ("moe", 17)])
def test_the_published_cliffs_are_found(alias: str, most: int) -> None:
    rate = past_the_last(alias)
    points = measured_by(Search(), lambda n: point(n, rate(n)))
    found = analyse(points)
    assert found.recommended is not None
    assert rate(found.recommended) >= 0.97 * rate(256)
    assert found.cliff is not None
    assert found.cliff[0] >= 256
    assert found.cliff[1] <= 405
    assert len(points) <= most


def test_the_published_plateau_is_found_without_going_far_beyond_it() -> None:
    rate = past_the_last("mamba")
    points = measured_by(Search(), lambda n: point(n, rate(min(n, 8)), running=8))
    found = analyse(points)
    assert (found.recommended, found.curve) == (8, "slots")
    assert max(p.concurrency for p in points) <= 16
    assert len(points) <= 6


@pytest.mark.parametrize("peak", [1, 2, 3, 5, 13, 24, 48, 100, 200, 333, 700])
def test_a_cliff_anywhere_is_found_within_15_per_cent(peak: int) -> None:
    found = analyse(measured_by(Search(), cliff_at(peak, 500.0)))
    assert found.recommended is not None
    assert peak / 1.16 - 1 <= found.recommended <= peak


@pytest.mark.parametrize("half", [3.0, 10.0, 40.0])
def test_saturation_ends_the_search_near_the_best(half: float) -> None:
    def rate(n: int) -> float:
        return 1000 * n / (n + half)

    points = measured_by(Search(), lambda n: point(n, rate(n)))
    found = analyse(points)
    assert found.recommended is not None
    assert rate(found.recommended) > 750
    assert len(points) <= 24


def test_the_largest_n_is_the_limit() -> None:
    points = measured_by(Search(limit=24), lambda n: point(n, 10.0 * n))
    assert max(p.concurrency for p in points) == 24
    assert analyse(points).recommended == 24


def test_a_search_that_was_interrupted_goes_on_where_it_was() -> None:
    measure = cliff_at(100, 500.0)
    whole = measured_by(Search(), measure)
    for cut in range(len(whole)):
        step = Search().next(whole[:cut])
        assert step.concurrency == whole[cut].concurrency


def test_growth_ends_where_requests_fail() -> None:
    def measure(n: int) -> Point:
        return point(n, 10.0 * n).model_copy(update={"timeouts": n if n > 16 else 0})

    points = measured_by(Search(), measure)
    assert max(p.concurrency for p in points) == 32
    assert analyse(points).recommended in range(16, 20)


def test_an_endpoint_that_answers_nothing_ends_it_at_once() -> None:
    dead = Point(concurrency=1, requests=1, errors={"server": 1})
    assert Search().next([dead]).concurrency is None


def test_a_list_is_measured_in_order_and_once() -> None:
    points = measured_by(FixedList([4, 1, 2, 2]), lambda n: point(n, 1.0))
    assert [p.concurrency for p in points] == [1, 2, 4]


def test_a_list_ends_above_an_n_at_which_most_failed() -> None:
    def measure(n: int) -> Point:
        return point(n, 1.0).model_copy(update={"timeouts": n if n >= 2 else 0})

    points = measured_by(FixedList([1, 2, 4, 8]), measure)
    assert [p.concurrency for p in points] == [1, 2]
    assert "most requests failed at N = 2" in FixedList([1, 2, 4]).next(points).why


def test_a_list_goes_on_past_a_cliff_that_still_answers() -> None:
    points = measured_by(FixedList([1, 2, 4, 8]), cliff_at(2, 10.0))
    assert [p.concurrency for p in points] == [1, 2, 4, 8]


def test_elasticity() -> None:
    assert elasticity(point(1, 10), point(2, 20)) == pytest.approx(1.0)
    assert elasticity(point(4, 10), point(8, 10)) == 0.0
    assert elasticity(point(4, 10), point(8, 10 * math.sqrt(2))) == pytest.approx(0.5)
    assert elasticity(point(1, 0.0), point(2, 5.0)) == 0.0


@pytest.mark.parametrize("moment", [8, 16, 64, 128])
def test_a_bad_moment_does_not_end_the_search(moment: int) -> None:
    def rate(n: int) -> float:
        return n / (100 + n) * (0.85 if n == moment else 1.0)

    points = measured_by(Search(), lambda n: point(n, rate(n)))
    assert moment in {p.concurrency for p in points}
    assert max(p.concurrency for p in points) >= 400
    assert analyse(points).cliff is None


def test_a_fall_that_the_server_explains_needs_no_second_point() -> None:
    full = Server(kv_max=0.99, preemptions=12)

    def measure(n: int) -> Point:
        return Point(
            concurrency=n, how="steady", requests=n, tokens_per_s=n if n <= 64 else 58,
            server=full if n > 64 else Server(kv_max=0.5),
        )  # fmt: skip

    points = measured_by(Search(), measure)
    assert max(p.concurrency for p in points) == 128
    unexplained = measured_by(Search(), lambda n: point(n, float(n if n <= 64 else 58)))
    assert sorted(p.concurrency for p in unexplained)[-2:] == [128, 160]
