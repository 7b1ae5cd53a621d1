"""The circuit breaker: a machine of three states, by a clock that the test turns."""

from __future__ import annotations

import logging

import pytest

from fanout import Failure, Kind
from fanout_workers.circuit import Circuit


class Bench:
    """A circuit, its clock, and how often it has said that it changed."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.changes = 0
        self.circuit = Circuit("spark", lambda: self.now)
        self.circuit.on_change = self._changed

    def _changed(self) -> None:
        self.changes += 1

    def fail(self, kind: Kind = Kind.CONNECT, times: int = 1, **about: object) -> None:
        for _ in range(times):
            self.circuit.failed(self.circuit.begin(), Failure(kind, "no", **about))  # type: ignore[arg-type]

    def answer(self) -> None:
        self.circuit.answered(self.circuit.begin())

    def half_open(self) -> None:
        self.fail(times=5)
        self.now += 60
        self.circuit.looked_at(None)
        assert self.circuit.state == "half-open"


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("kind", "status", "least"),
    [
        (Kind.CONNECT, None, 5),
        (Kind.OVERLOAD, 503, 5),
        (Kind.REQUEST, 404, 5),
        (Kind.REQUEST, 401, 5),
        (Kind.SERVER, 500, 10),
        (Kind.TIMEOUT, None, 10),
    ],
)
def test_failures_in_a_row_open_it(
    bench: Bench, kind: Kind, status: int | None, least: int
) -> None:
    bench.fail(kind, least - 1, status=status)
    assert (bench.circuit.state, bench.circuit.allows) == ("closed", True)
    bench.fail(kind, status=status)
    assert (bench.circuit.state, bench.circuit.allows) == ("open", False)
    assert bench.circuit.problem is not None


def test_an_answer_between_them_starts_the_count_anew(bench: Bench) -> None:
    for _ in range(3):
        bench.fail(times=4)
        bench.answer()
    assert bench.circuit.state == "closed"


@pytest.mark.parametrize(
    ("kind", "status"),
    [(Kind.REQUEST, 400), (Kind.TRUNCATED, None), (Kind.EMPTY, None), (Kind.SCHEMA, None)],
)
def test_what_is_the_item_s_fault_is_an_answer(
    bench: Bench, kind: Kind, status: int | None
) -> None:
    bench.fail(times=4)
    bench.fail(kind, 20, status=status)
    bench.fail(times=4)
    assert bench.circuit.state == "closed"


def test_it_stays_open_until_the_endpoint_looks_well_and_the_pause_is_over(bench: Bench) -> None:
    bench.fail(times=5)
    bench.circuit.looked_at(None)
    assert bench.circuit.state == "open"  # the pause
    bench.now += 60
    bench.circuit.looked_at("refused")
    assert bench.circuit.state == "open"
    assert bench.circuit.problem is not None
    assert "refused" in bench.circuit.problem
    bench.circuit.looked_at(None)
    assert bench.circuit.state == "half-open"


def test_half_open_lets_one_through_at_a_time(bench: Bench) -> None:
    bench.half_open()
    assert bench.circuit.allows
    epoch = bench.circuit.begin()
    assert not bench.circuit.allows
    changes = bench.changes
    bench.circuit.given_up(epoch)  # cancelled: the next may try
    assert bench.circuit.allows
    assert bench.changes == changes + 1


def test_a_probe_that_is_answered_closes_it(bench: Bench) -> None:
    bench.half_open()
    bench.answer()
    assert (bench.circuit.state, bench.circuit.problem) == ("closed", None)


def test_each_probe_that_fails_doubles_the_pause(bench: Bench) -> None:
    bench.half_open()
    pauses = []
    for _ in range(8):
        bench.fail(Kind.SERVER)
        assert bench.circuit.state == "open"
        pauses.append(bench.circuit.resumes_in_s)
        bench.now += pauses[-1]
        bench.circuit.looked_at(None)
        assert bench.circuit.state == "half-open"
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    bench.answer()
    bench.fail(times=5)
    assert bench.circuit.resumes_in_s == 0.5


def test_what_began_before_a_change_says_nothing(bench: Bench) -> None:
    old = bench.circuit.begin()
    bench.half_open()
    bench.circuit.answered(old)
    assert bench.circuit.state == "half-open"
    bench.circuit.failed(old, Failure(Kind.CONNECT, "no"))
    assert bench.circuit.state == "half-open"
    bench.answer()
    for _ in range(20):
        bench.circuit.failed(old, Failure(Kind.CONNECT, "no"))
    assert bench.circuit.state == "closed"


def test_retry_after_is_a_pause_and_no_more(bench: Bench) -> None:
    bench.fail(Kind.OVERLOAD, 20, status=429, retry_after=7.0)
    assert (bench.circuit.state, bench.circuit.allows) == ("closed", False)
    assert bench.circuit.problem == "it asked for a pause, 7 s are left"
    bench.now += 7
    assert bench.circuit.allows
    bench.answer()
    assert bench.circuit.problem is None


def test_a_longer_retry_after_lengthens_the_pause_and_a_shorter_one_does_not(bench: Bench) -> None:
    for seconds, left in [(5.0, 5.0), (9.0, 9.0), (2.0, 9.0), (1e6, 600.0)]:
        bench.fail(Kind.OVERLOAD, status=503, retry_after=seconds)
        assert bench.circuit.resumes_in_s == left


def test_a_full_server_that_works_is_not_down(bench: Bench) -> None:
    for _ in range(50):
        refused = Failure(Kind.OVERLOAD, "full", status=503)
        bench.circuit.failed(bench.circuit.begin(), refused, is_busy=True)
    assert bench.circuit.state == "closed"
    bench.fail(Kind.OVERLOAD, 5)
    assert bench.circuit.state == "open"


def test_a_probe_that_runs_has_been_accepted_and_its_reply_is_not_waited_for(bench: Bench) -> None:
    bench.half_open()
    bench.circuit.looked_at(None)
    bench.circuit.begin()
    bench.circuit.looked_at(None)
    assert bench.circuit.state == "half-open"
    bench.now += 1
    bench.circuit.looked_at("it does not answer")
    assert bench.circuit.state == "half-open"
    bench.circuit.looked_at(None)
    assert bench.circuit.state == "closed"


@pytest.mark.parametrize("kind", [Kind.SERVER, Kind.TIMEOUT])
def test_where_failures_come_late_the_reply_is_waited_for(bench: Bench, kind: Kind) -> None:
    bench.fail(kind, 10)
    bench.now += 60
    bench.circuit.looked_at(None)
    bench.circuit.begin()
    bench.now += 60
    bench.circuit.looked_at(None)
    assert bench.circuit.state == "half-open"


def test_an_old_answer_shortens_the_pause(bench: Bench) -> None:
    old = bench.circuit.begin()
    bench.fail(times=5)
    bench.circuit.looked_at(None)
    assert bench.circuit.state == "open"
    bench.circuit.answered(old)
    assert bench.circuit.state == "open"
    bench.circuit.looked_at(None)
    assert bench.circuit.state == "half-open"


def test_changes_are_logged_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        bench.half_open()
        for _ in range(5):
            bench.fail()
            bench.now += 60
            bench.circuit.looked_at(None)
        bench.answer()
    assert [record.getMessage() for record in caplog.records] == [
        "endpoint spark: its circuit is open: 5 failures in a row: no",
        "endpoint spark answers again: its circuit is closed",
    ]
