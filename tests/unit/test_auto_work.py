"""What prompts cost, how long the work is, and what of it a later run goes by."""

from __future__ import annotations

import pytest

from fanout_workers.auto import Bounds, Controller, Gauges, Observation, Remembered
from fanout_workers.auto.lengths import Lengths
from fanout_workers.auto.observe import Sample, throughput
from fanout_workers.auto.prefill import Prefill
from fanout_workers.auto.window import Window
from fanout_workers.auto.work import Work
from tests.unit.autokit import Formula, linear

TOKEN_S, SPEED = 1e-4, 800.0


def taken_in(poll: int) -> float:
    """Prompt tokens a second, which come in waves."""
    return 1000.0 * (1 + poll * 7 % 5)


def test_the_cost_of_a_prompt_is_the_slope_between_polls() -> None:
    prefill = Prefill()
    for poll in range(40):
        prompts = taken_in(poll)
        prefill.add(SPEED * (1 - TOKEN_S * prompts), prompts, 100.0)
    assert prefill.token_s == pytest.approx(TOKEN_S, rel=0.02)
    assert prefill.seconds(5.0, 10_000.0) == pytest.approx(1.0, rel=0.02)
    assert prefill.seconds(5.0, 1e9) == pytest.approx(4.0)


def test_without_waves_nothing_is_known_of_it() -> None:
    prefill = Prefill()
    for _ in range(40):
        prefill.add(SPEED, 1000.0, 100.0)
    assert prefill.token_s == 0.0


def test_throughput_does_not_depend_on_what_was_taken_in_just_then() -> None:
    def sample(busy_s: float) -> Sample:
        rate = SPEED * (5.0 - busy_s) / 5.0
        return Sample(
            5.0, 5.0, 10, 10.0, 10.0, rate, 0, 0, 0.0, 0, prefill_s=busy_s, prompt_s=0.001
        )

    expected = 1 / (1 / SPEED + 0.001)
    assert throughput([sample(0.0)]) == pytest.approx(expected)
    assert throughput([sample(3.0), sample(1.0)]) == pytest.approx(expected)


@pytest.mark.parametrize("steady", [False, True])
def test_while_n_rises_short_replies_are_no_other_work(steady: bool) -> None:
    work, window = Work(None), Window()
    window.lengths.ended(Observation(5.0, 50, 50.0, 30, 30 * 200, 3000.0), 5.0)
    assert not work.changed(window, steady)
    window.lengths.ended(Observation(10.0, 50, 50.0, 300, 300 * 300, 30_000.0), 5.0)
    assert work.changed(window, steady) is steady
    assert not work.changed(window, True)


def served(a_poll: int) -> Lengths:
    """After twenty polls with so many requests each: prompts of 1,500, replies of 300."""
    lengths = Lengths()
    lengths.began(0.0)
    for poll in range(20):
        seen = Observation(5.0 * poll, 200, 200.0, a_poll, 300 * a_poll, 50.0 * a_poll)
        lengths.ended(seen, 5.0)
        lengths.started(a_poll, 1500.0 * a_poll)
    return lengths


def test_longer_prompts_are_known_before_a_reply_comes() -> None:
    lengths = served(20)
    assert lengths.growth == pytest.approx(1.0)
    for _ in range(2):
        lengths.started(20.0, 20 * 4500.0)
    assert lengths.growth > 1.5


def test_prompts_that_are_taken_in_later_than_they_were_sent_are_not_longer() -> None:
    lengths = served(5)
    lengths.started(85.0, 20 * 1500.0)  # a step up by 80: the server reads 50 prompts in a poll
    for taken_in in (50, 25, 5, 5, 5):
        lengths.started(5.0, taken_in * 1500.0)
        assert lengths.growth < 1.1


def test_n_comes_down_before_longer_prompts_fill_the_cache() -> None:
    server = Formula(linear, kv_of=lambda n: n / 200)
    one = Controller(Bounds(16), Remembered(190, phase="hold"), running=190)
    prompts, before = 0.0, 190

    def drive(polls: int, length: float) -> list[str]:
        nonlocal prompts, before
        said = []
        for _ in range(polls):
            seen = server.seen(one.n)
            prompts += length * max(0, seen.completed + seen.in_flight - before)
            before = seen.in_flight
            assert seen.gauges is not None
            gauges = Gauges(
                seen.gauges.running, 0.0, seen.gauges.kv, 0.0, seen.gauges.tokens, prompts
            )
            fields = {name: getattr(seen, name) for name in Observation.__slots__}
            said.append(one.observe(Observation(**fields | {"gauges": gauges})).reason)
        return said

    drive(60, 1500.0)
    held = one.memory.n
    said = drive(8, 4500.0)
    assert any("times as long" in reason for reason in said)
    assert one.n < 0.75 * held


@pytest.mark.parametrize(("tokens", "least", "most"), [(600.0, 140, 400), (150.0, 65, 80)])
def test_a_later_run_of_longer_work_begins_lower(tokens: float, least: int, most: int) -> None:
    remembered = Remembered(200, mean_tokens=tokens)  # the server gives 300
    server, one = Formula(linear), Controller(Bounds(16), remembered)
    assert one.n == 140
    made = server.drive(one, 12)
    assert least <= min(d.n for d in made) <= most


def test_a_remembered_cliff_is_kept_away_from() -> None:
    remembered = Remembered(100, cliff=110, mean_tokens=300.0)
    server = Formula(linear, "T")
    one = Controller(Bounds(16), remembered)
    server.drive(one, 60)
    assert max(d.n for d in server.decisions) <= 105
    assert one.memory.cliff == 110
