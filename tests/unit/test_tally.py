"""What a process counts, with a clock that the tests move."""

from __future__ import annotations

import pytest

from fanout import Failure, Kind, Reply, Usage
from fanout_workers.tally import Tally, totals_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def reply(tokens: int) -> Reply:
    return Reply("yes", "stop", Usage(completion=tokens), "m", 1.0)


def test_requests_in_flight_are_integrated_over_time(clock: Clock) -> None:
    tally = Tally(False, clock)
    one = tally.start("extract")
    clock.now += 4
    other = tally.start("extract")
    clock.now += 2
    one.close()
    one.answered(reply(30))
    clock.now += 1
    totals = tally.read()
    assert (totals.in_flight, totals.area) == (1, 4 + 2 * 2 + 1)
    assert (totals.completed, totals.tokens, totals.latency_s) == (1, 30, 6.0)
    assert totals.kind == "extract"
    other.close()
    assert tally.read().in_flight == 0


def test_failures_count_as_what_they_are(clock: Clock) -> None:
    tally = Tally(False, clock)
    truncated = Failure(Kind.TRUNCATED, "cut")
    truncated.usage = Usage(completion=7)
    for failure in (
        Failure(Kind.TIMEOUT, "no reply"),
        Failure(Kind.OVERLOAD, "503", retry_after=3.0),
        Failure(Kind.OVERLOAD, "429"),
        truncated,
        Failure(Kind.CONNECT, "refused"),
    ):
        flight = tally.start("extract")
        flight.failed(failure)
        flight.close()
    totals = tally.read()
    assert (totals.timeouts, totals.overloads, totals.retry_after_s) == (1, 2, 3.0)
    assert (totals.completed, totals.tokens) == (1, 7)
    assert tally.read().retry_after_s == 0.0  # told once
    assert tally.read().overloads == 2  # a counter


def test_streams_that_fall_silent_are_told_from_those_that_never_began(clock: Clock) -> None:
    tally = Tally(True, clock)
    going, silent, mute = (tally.start("extract") for _ in range(3))
    going.meter.chunks, silent.meter.chunks = 5, 3
    totals = tally.read()
    assert (totals.chunks, totals.unstarted, totals.stalled) == (8, 0, 0)
    for _ in range(3):
        going.meter.chunks += 5
        totals = tally.read()
    assert (totals.chunks, totals.unstarted, totals.stalled) == (23, 1, 1)
    going.close()
    going.answered(reply(40))
    mute.close()
    totals = tally.read()
    assert (totals.chunks, totals.ended_chunks, totals.tokens) == (23, 20, 40)
    assert (totals.unstarted, totals.stalled) == (0, 1)


def test_totals_of_a_newer_version_can_be_read() -> None:
    totals = totals_of({"in_flight": 3, "area": 1.5, "something_new": 1})
    assert (totals.in_flight, totals.area, totals.completed) == (3, 1.5, 0)
