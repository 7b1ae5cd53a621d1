"""What curves are said to be: the published ones, and made-up ones of every kind."""

from __future__ import annotations

from typing import Any

import pytest

from fanout.sim.published import TABLES
from fanout.sweep.analysis import Analysis, analyse, scaling
from fanout.sweep.point import Point, Server


def curve(rates: dict[int, float], **more: dict[int, Any]) -> list[Point]:
    """Points by N; `more` holds further fields by N."""
    return [
        Point(
            concurrency=n,
            requests=n,
            tokens_per_s=rate,
            **{name: values[n] for name, values in more.items() if n in values},
        )
        for n, rate in rates.items()
    ]


def published(alias: str, **more: dict[int, Any]) -> list[Point]:
    rows = TABLES[alias]
    return curve(
        {row.concurrency: row.tokens_per_s for row in rows},
        per_sequence_tokens_per_s={r.concurrency: r.per_sequence_tokens_per_s for r in rows},
        timeouts={row.concurrency: row.timeouts for row in rows},
        **more,
    )


def said(analysis: Analysis) -> str:
    return " ".join(analysis.words)


def test_the_published_dense_curve_scales_to_a_cliff() -> None:
    server = Server(kv_max=0.99, preemptions=812, running_max=263, waiting_mean=40)
    found = analyse(published("dense", server={320: server}))
    assert (found.recommended, found.peak, found.cliff) == (256, 256, (256, 320))
    assert found.curve == "cliff"
    assert "scales to a cliff: 120 times" in said(found)
    assert "falls by 26%: the KV cache is full (99%, 812 preemptions)" in said(found)
    assert "N = 256 is the last good one" in said(found)


def test_the_published_mixture_of_experts_falls_without_a_full_cache() -> None:
    found = analyse(published("moe", server={384: Server(kv_max=0.13, preemptions=0)}))
    assert (found.recommended, found.peak, found.cliff) == (256, 256, (256, 384))
    assert found.curve == "cliff"
    assert "with 13% of the KV cache used: not memory, but compute" in said(found)


def test_the_published_hybrid_is_a_plateau_by_max_num_seqs() -> None:
    found = analyse(published("mamba"))
    assert (found.recommended, found.peak, found.cliff) == (8, 32, (256, 384))
    assert found.curve == "slots"
    assert "plateau by max_num_seqs: about 8 run at once" in said(found)
    assert "requests begin to fail (24 timeouts of 384)" in said(found)


def test_the_server_says_how_many_run_at_once() -> None:
    queue = {n: Server(running_max=8, waiting_mean=n - 8.0) for n in (16, 32)}
    found = analyse(curve({1: 20, 2: 40, 4: 80, 16: 152, 32: 153}, server=queue))
    assert found.curve == "slots"
    assert "about 8 run at once" in said(found)


def test_a_queue_before_a_full_cache_is_no_matter_of_max_num_seqs() -> None:
    full = Server(running_max=289, waiting_mean=31, kv_max=1.0, preemptions=88)
    found = analyse(curve({128: 497, 256: 695, 320: 654}, server={320: full}))
    assert (found.recommended, found.curve) == (256, "slots")
    assert "plateau by the KV cache: about 289 run at once" in said(found)


def test_a_plateau_without_a_queue_is_bounded_by_compute() -> None:
    found = analyse(
        curve(
            {1: 30, 2: 55, 4: 90, 8: 110, 16: 114, 32: 115, 64: 115},
            server={n: Server(waiting_mean=0.0, running_max=n) for n in (16, 32, 64)},
        )
    )
    assert (found.recommended, found.peak, found.cliff) == (16, 32, None)
    assert found.curve == "compute"


def test_a_curve_that_still_rises_says_so() -> None:
    found = analyse(curve({1: 10, 2: 20, 4: 39}))
    assert (found.recommended, found.curve, found.cliff) == (4, "rising", None)
    assert "Still rising at the largest N" in said(found)


def test_a_flat_curve_needs_one_request() -> None:
    found = analyse(curve({1: 30, 2: 30.5, 4: 30.2}))
    assert (found.recommended, found.curve) == (1, "flat")


def test_a_plateau_drifts_upward_under_noise_and_the_smallest_good_n_is_taken() -> None:
    found = analyse(curve({8: 100, 16: 101, 32: 102, 64: 103}))
    assert (found.recommended, found.peak) == (8, 64)


def test_noise_beyond_the_peak_is_no_cliff() -> None:
    assert analyse(curve({1: 10, 2: 20, 4: 40, 8: 39})).cliff is None


def test_a_point_at_which_requests_fail_is_never_recommended() -> None:
    found = analyse(curve({1: 10, 2: 20, 4: 90}, errors={4: {"overload": 2}}))
    assert (found.recommended, found.cliff) == (2, (2, 4))
    assert "2 x overload of 4" in said(found)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([], "Nothing was measured"),
        (
            curve({1: 0.0}, errors={1: {"server": 1}}, messages={1: {"server": "HTTP 500"}}),
            "HTTP 500",
        ),
    ],
)
def test_nothing_gives_no_n(points: list[Point], words: str) -> None:
    found = analyse(points)
    assert found.recommended is None
    assert words in said(found)


def test_one_point_is_no_curve() -> None:
    assert analyse(curve({4: 10.0})).curve == "unknown"


def test_scaling_is_over_the_smallest_n() -> None:
    points = curve({4: 80.0, 1: 20.0})
    assert scaling(points, points[0]) == 4.0
