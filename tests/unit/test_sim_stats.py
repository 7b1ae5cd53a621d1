"""The referee's book: sequences made by hand, figures reckoned by hand."""

from __future__ import annotations

import random

import pytest

from fanout.sim.stats import Level, Stats, item_of


def test_a_level_over_time() -> None:
    level = Level(0.0)
    for now, by in ((1.0, +1), (2.0, +1), (2.0, +1), (4.0, -1), (5.0, -2)):
        level.change(now, by)
    # 0 to 1: 0, to 2: 1, to 4: 3, to 5: 2, then 0.
    assert level.max == 3
    assert level.level == 0
    assert level.area(10.0) == 1 + 6 + 2
    assert level.mean(0.0, 5.0) == pytest.approx(9 / 5)
    assert level.mean(1.5, 4.5) == pytest.approx((0.5 + 6 + 1) / 3)
    assert level.mean(3.0, 3.0) == 3.0
    assert level.mean(5.0, 9.0) == 0.0
    assert level.peak(0.0, 1.5) == 1
    assert level.peak(4.5, 6.0) == 2
    assert level.peak(5.5, 6.0) == 0
    assert level.seconds_at(6.0) == {0: 2.0, 1: 1.0, 3: 2.0, 2: 1.0}


def test_a_peak_that_lasts_no_time_is_still_a_peak() -> None:
    level = Level(0.0)
    level.change(1.0, +1)
    level.change(1.0, +1)
    level.change(1.0, -2)
    assert level.max == level.peak(0.5, 1.5) == 2
    assert level.mean(0.0, 2.0) == 0.0
    assert level.seconds_at(2.0) == {0: 2.0}


@pytest.mark.parametrize("seed", range(3))
def test_levels_agree_with_a_plain_sum(seed: int) -> None:
    dice = random.Random(seed)
    spans = [(start := dice.uniform(0, 90), start + dice.expovariate(0.2)) for _ in range(300)]
    level = Level(0.0)
    changes = [(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans]
    for now, by in sorted(changes):
        level.change(now, by)
    for _ in range(50):
        a, b = sorted((dice.uniform(0, 100), dice.uniform(0, 100)))
        held = sum(max(0.0, min(end, b) - max(start, a)) for start, end in spans)
        assert level.mean(a, b) == pytest.approx(held / (b - a))
        alive = [
            sum(s <= t < e for s, e in spans) for t in [a, *(s for s, _ in spans if a < s <= b)]
        ]
        assert level.peak(a, b) == max(alive)


def test_in_flight_from_arrival_to_the_end() -> None:
    stats = Stats(100.0)
    first = stats.arrived(100.0, "a-0")
    second = stats.arrived(101.0, "b-0")
    stats.ended(103.0, first, "answered")
    third = stats.arrived(103.0, "c-0")
    stats.ended(104.0, second, "aborted")
    stats.ended(105.0, third, "error")
    told = stats.snapshot(106.0, points=6)
    assert told["seconds"] == 6.0
    assert (told["requests"], told["answered"], told["aborted"]) == (3, 1, 1)
    assert told["failed"] == {"error": 1}
    assert told["in_flight"]["max"] == 2
    assert told["in_flight"]["mean"] == pytest.approx((1 + 2 + 2 + 2 + 1 + 0) / 6)
    assert [mean for _, mean, _ in told["in_flight"]["curve"]] == [1, 2, 2, 2, 1, 0]
    assert stats.mean(1.0, 3.0) == 2.0


def test_a_visit_ends_once() -> None:
    stats = Stats()
    visit = stats.arrived(0.0)
    stats.ended(1.0, visit, "answered")
    stats.ended(2.0, visit, "aborted")
    assert (stats.answered, stats.aborted, stats.level.level) == (1, 0, 0)


def test_the_window_from_10_to_90_percent_of_the_answers() -> None:
    stats = Stats(50.0)
    # Ten answers at 1, 2, … 10 s, one after another; a failure in between counts for nothing.
    for second in range(10):
        visit = stats.arrived(50.0 + second)
        stats.ended(51.0 + second, visit, "answered")
        stats.ended(51.0 + second, stats.arrived(51.0 + second), "error")
    assert stats.window() == (1.0, 9.0)
    assert stats.snapshot(70.0)["in_flight"]["mean_10_90"] == pytest.approx(1.0)
    assert stats.snapshot(70.0)["in_flight"]["mean"] == pytest.approx(0.5)


def test_without_answers_there_is_no_window() -> None:
    stats = Stats()
    assert stats.snapshot(1.0)["in_flight"]["mean_10_90"] is None
    stats.ended(1.0, stats.arrived(0.0), "answered")
    assert stats.window() is None


@pytest.mark.parametrize(
    ("request_id", "item"),
    [
        ("b1f2-77aa-0", ("b1f2-77aa", 0)),
        ("b1f2-77aa.12-3", ("b1f2-77aa.12", 3)),
        ("6f1d3c52-8a0b-4c1e-9d27-000000000001", ("6f1d3c52-8a0b-4c1e-9d27-000000000001", 0)),
        ("6f1d3c52-8a0b-4c1e-9d27-000000000001-1", ("6f1d3c52-8a0b-4c1e-9d27-000000000001", 1)),
        ("plain", ("plain", 0)),
    ],
)
def test_item_and_try_of_a_request_id(request_id: str, item: tuple[str, int]) -> None:
    assert item_of(request_id) == item


def counts(stats: Stats) -> tuple[int, int, int, int]:
    return stats.while_in_flight, stats.after_answer, stats.asked_again, stats.retries


def test_the_same_item_while_it_is_in_flight() -> None:
    stats = Stats()
    first = stats.arrived(0.0, "a-0")
    second = stats.arrived(1.0, "a-0")
    assert counts(stats) == (1, 0, 0, 0)
    stats.ended(2.0, first, "answered")
    stats.arrived(2.5, "a-1")  # the second still is
    assert counts(stats) == (2, 0, 0, 0)
    stats.ended(3.0, second, "answered")
    assert stats.examples == ["a-0", "a-1"]


def test_the_same_item_after_it_was_answered() -> None:
    stats = Stats()
    stats.ended(1.0, stats.arrived(0.0, "a-0"), "answered")
    stats.ended(3.0, stats.arrived(2.0, "a-0"), "answered")
    assert counts(stats) == (0, 1, 0, 0)
    stats.ended(5.0, stats.arrived(4.0, "a-1"), "answered")  # its client wants another answer
    assert counts(stats) == (0, 1, 1, 0)
    stats.arrived(6.0, "a-1")
    assert counts(stats) == (0, 2, 1, 0)


@pytest.mark.parametrize("outcome", ["error", "aborted", "reset", "hang"])
def test_a_retry_after_a_failure_is_no_duplicate(outcome: str) -> None:
    stats = Stats()
    stats.ended(1.0, stats.arrived(0.0, "a-0"), outcome)
    stats.ended(3.0, stats.arrived(2.0, "a-1"), outcome)
    stats.arrived(4.0, "a-1")
    stats.arrived(4.0, "b-0")
    stats.arrived(4.0)
    stats.arrived(4.0)
    assert counts(stats) == (0, 0, 0, 2)


def test_a_hanging_request_ends_when_its_client_leaves() -> None:
    stats = Stats()
    visit = stats.arrived(0.0, "a-0")
    stats.hung(visit)
    assert stats.level.level == 1
    stats.ended(9.0, visit, "aborted")
    assert (stats.aborted, stats.failed) == (0, {"hang": 1})


def test_after_a_reset_the_counts_still_add_up() -> None:
    stats = Stats()
    stats.ended(1.0, stats.arrived(0.0, "old-0"), "answered")
    held = [stats.arrived(2.0, "a-0"), stats.arrived(2.0, "b-0")]
    stats.reset(10.0)
    told = stats.snapshot(10.0)
    assert (told["requests"], told["answered"], told["in_flight"]["max"]) == (2, 0, 2)
    stats.arrived(11.0, "a-0")
    stats.arrived(11.0, "old-0")  # a new count: nothing is known of it
    assert counts(stats) == (1, 0, 0, 0)
    for visit in held:
        stats.ended(12.0, visit, "answered")
    told = stats.snapshot(12.0)
    done = told["answered"] + told["aborted"] + sum(told["failed"].values())
    assert told["requests"] == done + told["in_flight"]["now"] == 4
    assert told["in_flight"]["seconds_at"] == {"2": 1.0, "4": 1.0}


def test_marks_are_seconds_since_the_reset() -> None:
    stats = Stats(5.0)
    stats.mark("kill", 7.5)
    assert stats.snapshot(8.0)["marks"] == {"kill": 2.5}
