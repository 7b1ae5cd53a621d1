"""From requests to the figures of a point."""

from __future__ import annotations

import pytest

from fanout import Kind
from fanout.sweep.point import Point, Server, Spread
from fanout.sweep.samples import Sample, Window, steady_point, wave_point


def test_percentiles_are_by_nearest_rank() -> None:
    spread = Spread.of(float(n) for n in range(1, 101))
    assert spread == Spread(mean=50.5, p50=50, p95=95, p99=99, max=100)
    assert Spread.of([7.0]) == Spread(mean=7, p50=7, p95=7, p99=7, max=7)
    assert Spread.of([]) is None


def test_a_wave_lasts_from_the_first_start_to_the_last_end() -> None:
    samples = [
        Sample(started=10.0, ended=20.0, tokens=100, prompt=8, cached=4, ttft_s=1.0),
        Sample(started=10.5, ended=30.0, tokens=300, prompt=10, ttft_s=3.0),
    ]
    point = wave_point(2, samples)
    assert (point.concurrency, point.how, point.requests, point.tokens) == (2, "wave", 2, 400)
    assert point.wall_s == 20.0
    assert point.tokens_per_s == 20.0
    assert point.per_sequence_tokens_per_s == pytest.approx((10 + 300 / 19.5) / 2)
    assert point.in_flight == pytest.approx(29.5 / 20)
    assert point.latency is not None
    assert (point.latency.mean, point.latency.max) == (14.75, 19.5)
    assert point.ttft is not None
    assert point.ttft.p95 == 3.0
    assert (point.prompt_tokens, point.cached_tokens) == (9.0, 2.0)
    assert point.valid is None


def test_failures_are_counted_by_kind_and_give_no_latency() -> None:
    samples = [
        Sample(0.0, 10.0, tokens=100),
        Sample(0.0, 900.0, failure=Kind.TIMEOUT, words="no reply in 900 s"),
        Sample(0.0, 0.1, failure=Kind.OVERLOAD, words="HTTP 503: full"),
        Sample(0.0, 0.1, failure=Kind.OVERLOAD, words="HTTP 503: full again"),
    ]
    point = wave_point(4, samples)
    assert (point.timeouts, point.errors, point.failed) == (1, {"overload": 2}, 3)
    assert point.messages == {"timeout": "no reply in 900 s", "overload": "HTTP 503: full"}
    assert point.wall_s == 900.0  # the published figure counts the wait for them, too
    assert point.latency is not None
    assert point.latency.max == 10.0
    assert point.failing


def test_one_failure_in_a_hundred_is_not_failing() -> None:
    samples = [Sample(0.0, 1.0, tokens=1)] * 99 + [Sample(0.0, 1.0, failure=Kind.SERVER)]
    assert not wave_point(100, samples).failing


def test_goodput_counts_valid_records_only() -> None:
    samples = [
        Sample(0.0, 10.0, tokens=50, valid=1),
        Sample(0.0, 10.0, tokens=50, valid=0, unusable=Kind.SCHEMA, words="not an object"),
        Sample(0.0, 10.0, tokens=50, valid=0, unusable=Kind.TRUNCATED, words="cut"),
    ]
    point = wave_point(3, samples)
    assert (point.valid, point.valid_per_s, point.tokens) == (1, 0.1, 150)
    assert point.unusable == {"schema": 1, "truncated": 1}
    assert point.failed == 0


def test_tokens_counted_as_they_come_give_the_rate() -> None:
    samples = [Sample(0.0, 10.0, tokens=400)]
    window = Window(seconds=5.0, in_flight=4.0, tokens=800.0, counted_by="stream")
    point = steady_point(4, samples, window)
    assert (point.tokens_per_s, point.counted_by, point.wall_s) == (160.0, "stream", 5.0)
    assert point.per_sequence_tokens_per_s == 40.0
    assert point.mean_latency_s == 10.0
    assert (point.tokens, point.in_flight, point.how) == (800, 4.0, "steady")


def test_latencies_are_those_of_requests_that_began_at_this_n() -> None:
    samples = [Sample(0.0, 10.0, tokens=400, ttft_s=0.1), Sample(5.0, 25.0, tokens=400, ttft_s=2.0)]
    window = Window(seconds=20.0, in_flight=4.0, since=5.0, tokens=1600.0, counted_by="server")
    point = steady_point(4, samples, window)
    assert (point.requests, point.mean_latency_s) == (2, 20.0)
    assert point.latency == Spread.of([20.0])
    assert point.ttft == Spread.of([2.0])
    assert steady_point(4, samples[:1], window).latency is None


def test_little_s_law_where_nobody_counts() -> None:
    # Two ended, of 300 and 100 tokens in 30 and 10 s: 10 tokens/s each, with four in flight.
    samples = [Sample(0.0, 30.0, tokens=300), Sample(20.0, 30.0, tokens=100)]
    point = steady_point(4, samples, Window(seconds=5.0, in_flight=4.0))
    assert (point.tokens_per_s, point.counted_by) == (40.0, "little")


def test_a_window_without_an_end_in_it() -> None:
    point = steady_point(4, [], Window(seconds=5.0, in_flight=4.0))
    assert (point.tokens_per_s, point.requests, point.latency) == (0.0, 0, None)


def test_a_wave_without_an_answer() -> None:
    point = wave_point(1, [Sample(1.0, 1.0, failure=Kind.CONNECT, words="refused")])
    assert (point.tokens_per_s, point.wall_s, point.failing) == (0.0, 0.0, True)


@pytest.mark.parametrize(
    ("point", "queued"),
    [
        (Point(concurrency=16, server=Server(waiting_mean=8.0)), True),
        (Point(concurrency=16, server=Server(waiting_mean=0.5)), False),
        # Batches one after another: the mean of 20 and 10 tokens/s, of 16 requests, is not 160.
        (Point(concurrency=16, tokens_per_s=160, per_sequence_tokens_per_s=15), True),
        (Point(concurrency=16, tokens_per_s=160, per_sequence_tokens_per_s=10), False),
        (Point(concurrency=16, how="steady", tokens_per_s=1, per_sequence_tokens_per_s=9), False),
        (Point(concurrency=16), False),
    ],
)
def test_a_queue_is_seen_from_the_server_or_from_the_speeds(point: Point, queued: bool) -> None:
    assert point.queued is queued
