"""Rates from observations: whose tokens, over what time, and what is not known."""

from __future__ import annotations

import pytest

from fanout_workers.auto import Gauges, Observation, Streams
from fanout_workers.auto.observe import throughput
from fanout_workers.auto.window import Window
from tests.unit.autokit import by_chance, looked_at, wandering


def completions(at: float, in_flight: int, **more: float) -> Observation:
    figures = {"mean_in_flight": float(in_flight), **more}
    return Observation(at, in_flight, **figures)  # type: ignore[arg-type]


def test_throughput_by_little_s_law() -> None:
    window = Window()
    window.add(completions(0, 10))
    window.add(completions(5, 10, completed=2, tokens=600, latency_s=100.0))
    window.add(completions(10, 20, completed=1, tokens=300, latency_s=50.0))
    # 15 in flight on average, 6 tokens in each second of a request.
    assert throughput(list(window.samples)) == pytest.approx(15 * 900 / 150)
    assert window.duration_s == pytest.approx(50.0)
    assert window.mean_tokens == pytest.approx(300.0)


def test_before_the_first_reply_nothing_is_known_but_that_it_takes_longer() -> None:
    window = Window()
    for at in (0, 5, 10, 40):
        window.add(completions(at, 4))
    assert throughput(list(window.samples)) is None
    assert window.duration_s == 40.0


def test_the_server_s_own_count_comes_first_and_belongs_to_all_clients() -> None:
    window = Window()
    for at, tokens in ((0, 1000), (5, 2000), (10, 3500)):
        gauges = Gauges(running=60, waiting=20, kv=0.5, tokens=tokens)
        window.add(Observation(at, 40, 40.0, 1, 10, 1.0, gauges=gauges, streams=Streams(tokens=1)))
    first, second = window.samples
    assert (first.rate, second.rate) == (200.0, 300.0)
    assert first.load == 80.0  # ours and theirs
    assert (first.running, first.waiting) == (30.0, 10.0)  # our part
    assert window.others > 0


def test_streams_tell_where_metrics_do_not() -> None:
    window = Window()
    window.add(Observation(0, 10, 10.0, streams=Streams(tokens=0)))
    sample = window.add(Observation(5, 10, 10.0, streams=Streams(50, unstarted=2, stalled=1)))
    assert sample is not None
    assert (sample.rate, sample.waiting, sample.running, sample.preempted) == (10.0, 3.0, 7.0, 1.0)
    assert sample.kv is None


def test_a_server_that_counts_no_tokens_leaves_little_s_law() -> None:
    window = Window()
    window.add(Observation(0, 8, 8.0, gauges=Gauges(4, 4)))
    sample = window.add(Observation(5, 8, 8.0, 1, 100, 20.0, gauges=Gauges(4, 4)))
    assert sample is not None
    assert (sample.rate, sample.running, sample.waiting) == (None, 4.0, 4.0)
    assert throughput([sample]) == pytest.approx(8 * 100 / 20)


def test_a_restarted_server_is_not_a_fall() -> None:
    window = Window()
    window.add(Observation(0, 8, 8.0, gauges=Gauges(8, 0, tokens=5000)))
    assert window.add(Observation(5, 8, 8.0, gauges=Gauges(8, 0, tokens=10))) is None
    sample = window.add(Observation(10, 8, 8.0, gauges=Gauges(8, 0, tokens=60)))
    assert sample is not None
    assert sample.rate == 10.0


def test_one_look_that_failed_does_not_change_the_way_of_measuring() -> None:
    window = Window()
    for at in range(0, 50, 5):
        gauges = None if at == 20 else Gauges(8, 0, tokens=at * 100)
        window.add(Observation(at, 8, 8.0, 1, 3, 1.0, gauges=gauges))
    assert throughput(list(window.samples)) == pytest.approx(100.0)


def test_d_follows_the_work() -> None:
    window = Window()
    window.add(completions(0, 10))
    for poll in range(1, 40):
        window.add(completions(5 * poll, 10, completed=5, tokens=500, latency_s=100.0))
    assert window.duration_s == pytest.approx(20.0)
    for poll in range(40, 60):
        window.add(completions(5 * poll, 10, completed=5, tokens=1500, latency_s=300.0))
    assert window.duration_s == pytest.approx(60.0, rel=0.05)
    assert window.mean_tokens == pytest.approx(300.0, rel=0.05)


def test_replies_that_happen_to_be_short_do_not_change_what_an_n_gives() -> None:
    """After a step up the short ones of what was added end first, and the server is as fast."""
    window = Window()
    tokens = prompts = 0.0
    speed, prompt_s, prompt, reply = 1000.0, 0.0005, 900, 300
    at = 0.0
    for poll in range(400):
        lately = poll >= 390
        completed, length = (4, reply / 2) if lately else (2 + poll % 3, reply)
        at += 5.0
        prompts += completed * prompt
        tokens += speed * (5.0 - prompt_s * completed * prompt)
        gauges = Gauges(running=64, waiting=0, kv=0.5, tokens=tokens, prompts=prompts)
        latency_s = completed * 100.0
        window.add(
            Observation(
                at, 64, 64.0, completed, round(completed * length), latency_s, gauges=gauges
            )
        )
    assert window.mean_tokens is not None
    assert window.mean_tokens < 0.9 * reply
    before, after = list(window.samples)[-30:-10], list(window.samples)[-10:]
    told = throughput(before), throughput(after)
    assert told[0] is not None
    assert told[0] == pytest.approx(1 / (1 / speed + prompt_s * prompt / reply), rel=0.02)
    assert told[1] == pytest.approx(told[0], rel=0.02)
    window.lengths.renew()  # the work has become other: then it is what came of late
    window.add(Observation(at + 5.0, 64, 64.0, 3, 450, 300.0, gauges=gauges))
    assert window.lengths.mix is not None
    assert window.lengths.mix > 1.1 * prompt / reply


def test_what_differs_by_chance_is_told_from_what_wanders() -> None:
    chance, walk = looked_at(by_chance(0.05)), looked_at(wandering(0.05))
    assert chance.wobble == pytest.approx(0.07, abs=0.02)
    assert chance.scatter == pytest.approx(0.05, abs=0.015)
    assert walk.wobble == pytest.approx(0.05, abs=0.015)
    assert walk.scatter < 0.4 * walk.wobble
    assert looked_at(wandering(0.0)).chance == 1.0
