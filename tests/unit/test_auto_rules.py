"""The rules of ramp, brake, refine and hold, one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest

from fanout_workers.auto import Bounds, Controller, Remembered
from fanout_workers.auto.leg import Point
from fanout_workers.auto.levels import Levels
from fanout_workers.auto.probe import GAIN, Probe, Verdict
from fanout_workers.auto.ramp import Ramp, elasticity, smallest_near_best
from fanout_workers.auto.search import Search
from fanout_workers.auto.window import Window
from tests.unit.autokit import (
    Formula,
    by_chance,
    cliff_at,
    controller,
    flat_from,
    linear,
    looked_at,
    polled,
    wandering,
)


def points(curve: object, *loads: int) -> list[Point]:
    assert callable(curve)
    return [Point(n, float(n), curve(n)) for n in loads]


# --- ramp


def test_elasticity_is_the_slope_in_logarithms() -> None:
    assert elasticity(points(linear, 16, 20, 25)) == pytest.approx(1.0)
    assert elasticity(points(flat_from(1e9, 0.6), 64, 69, 75, 81)) == pytest.approx(0.6)
    assert elasticity(points(linear, 16)) is None
    assert elasticity([]) is None
    # What lies far below does not count.
    assert elasticity([Point(1, 1.0, 500.0), *points(linear, 100, 120)]) == pytest.approx(1.0)


def test_of_equals_the_smallest_n_is_chosen() -> None:
    many = points(flat_from(100), 50, 60, 70, 80, 90, 100, 110, 120, 130)
    assert smallest_near_best(many).n == 100
    assert smallest_near_best(points(linear, 10, 20, 30)).n == 30


def test_the_ramp_takes_large_steps_while_the_server_is_far_from_its_limits() -> None:
    server, one = Formula(linear), controller(16)
    steps = [d.n / d.before for d in server.drive(one, 60) if d.n != d.before]
    assert steps[0] == pytest.approx(1.25)  # nothing is known yet
    assert max(steps) == pytest.approx(1.5, abs=0.02)
    assert one.n > 200


def test_the_ramp_takes_small_steps_once_gains_grow_less() -> None:
    server, one = Formula(flat_from(1e9, 0.6)), controller(16)
    made = [d for d in server.drive(one, 60) if d.n != d.before]
    assert all(d.n / d.before == pytest.approx(1.06, abs=0.01) for d in made if d.before > 80)
    assert all(d.phase == "ramp" for d in made)


@pytest.mark.parametrize("mode", ["M", "T"])
@pytest.mark.parametrize("top", [40, 150, 400])
def test_the_ramp_ends_where_nothing_more_is_gained(mode: str, top: int) -> None:
    server, one = Formula(cliff_at(top), mode), controller(16)
    ended = server.until(one, lambda d: d.phase == "refine")
    assert "no longer rises" in ended.reason
    assert 0.85 * top <= ended.n <= 1.15 * top
    # Steps are larger below 4 x the start: there, too many cost little.
    assert max(d.n for d in server.decisions) <= (1.3 if top > 64 else 1.6) * top


@pytest.mark.parametrize("mode", ["M", "T"])
def test_what_seems_to_gain_nothing_is_measured_once_more(mode: str) -> None:
    # The server is slower from some step on: the ramp is not over for that.
    server = Formula(flat_from(1e9, 0.6), mode)
    one = controller(16)
    server.until(one, lambda d: d.n >= 150)
    steady = server.curve
    server.curve = lambda n: 0.93 * steady(n)
    doubt = server.until(one, lambda d: "seems to rise no longer" in d.reason)
    assert doubt.n < doubt.before
    after = server.until(one, lambda d: d.n > doubt.before or d.phase != "ramp")
    assert "throughput rises with N" in after.reason


def test_n_does_not_give_way_to_a_client_that_fills_the_server_alone() -> None:
    # Whatever it gives up, the other one takes: the server's throughput stays.
    server, one = Formula(flat_from(8), slots=8), controller(16)
    server.drive(one, 300)
    server.others = 64
    server.drive(one, 4000)
    assert 8 <= min(d.n for d in server.decisions[-3000:]) <= 10


def test_below_the_top_of_a_ramp_no_other_begins() -> None:
    server, one = Formula(cliff_at(150)), controller(16)
    server.until(one, lambda d: d.phase == "refine")
    steep = server.curve
    server.curve = lambda n: steep(n) * (n / 100) ** 0.8  # a probe gains, wherever it goes
    made = server.drive(one, 2000)
    reached = next(i for i, d in enumerate(made) if d.phase == "ramp")
    tops = [d.n for d in server.decisions if d.phase == "ramp" and d.at < made[0].at]
    assert made[reached].n > max(tops)


def test_without_tokens_as_they_come_the_steps_are_few_and_large() -> None:
    server, one = Formula(flat_from(1e9, 0.7), "C"), controller(16)
    made = [d for d in server.drive(one, 200) if d.n != d.before]
    assert [round(d.n / d.before, 2) for d in made[:3]] == [2.0, 2.0, 2.0]


def test_the_ramp_never_plans_past_95_percent_of_the_cache() -> None:
    server, one = Formula(linear, kv_of=lambda n: n / 200), controller(16)
    ended = server.until(one, lambda d: d.phase == "hold")
    assert ended.n == 190
    assert one.regime == "kv"


def test_the_ramp_stays_within_its_bounds() -> None:
    server, one = Formula(linear), controller(16, most=50)
    server.until(one, lambda d: d.phase != "ramp")
    assert one.n == 50
    server.drive(one, 500)
    assert max(d.n for d in server.decisions) == 50


# --- brake


def test_a_queue_in_the_server_brings_n_down_to_its_slots() -> None:
    server, one = Formula(flat_from(8), slots=8), controller(16)
    made = server.drive(one, 4)
    assert [d.n for d in made] == [16, 16, 16, 10]  # three polls after the first look
    assert made[-1].reason == "requests queue for slots"
    assert (one.regime, one.phase) == ("cap", "hold")


def test_a_queue_as_short_as_it_should_be_ends_the_ramp() -> None:
    server, one = Formula(flat_from(24), slots=24), controller(27)
    made = server.drive(one, 4)[-1]
    assert (made.n, made.phase, made.reason) == (27, "hold", "requests queue for slots")


def test_one_poll_with_a_queue_is_no_reason() -> None:
    server, one = Formula(linear), controller(16)
    for _ in range(6):
        server.slots = 8
        server.drive(one, 2)
        server.slots = 10_000
        server.drive(one, 1)
    assert min(d.n for d in server.decisions) == 16


def test_n_does_not_rise_while_requests_queue() -> None:
    server, one = Formula(linear), controller(16)
    server.drive(one, 2)
    server.slots = 12
    assert [d.n for d in server.drive(one, 2)] == [16, 16]


def test_a_full_cache_brings_n_down_by_what_runs() -> None:
    server, one = Formula(linear, kv_of=lambda n: 0.5), controller(100)
    server.drive(one, 1)
    server.slots, server.kv_of = 80, lambda n: 0.97
    made = server.until(one, lambda d: d.n < d.before)
    assert made.n == 80
    assert made.reason == "requests queue, the KV cache is full"
    assert one.regime == "kv"
    assert one.memory.cliff == 100


@pytest.mark.parametrize(("running", "n"), [(20, 70), (85, 85), (94, 93)])
def test_a_full_cache_lowers_n_by_7_to_30_percent(running: int, n: int) -> None:
    server, one = Formula(linear, kv_of=lambda n: 0.97, slots=running), controller(100)
    made = server.drive(one, 4)
    assert made[-1].n == n


def test_preemptions_bring_n_down_without_a_queue() -> None:
    server, one = Formula(linear, kv_of=lambda n: 0.93), controller(100)
    server.drive(one, 2)
    for _ in range(20):
        server.preemptions += 10
        (made,) = server.drive(one, 1)
        if made.n < made.before:
            break
    assert made.reason == "requests are preempted"
    assert made.n == 93


def test_stalled_streams_are_a_full_cache_and_unstarted_ones_are_not() -> None:
    stalled, queued = controller(100), controller(100)
    server = Formula(linear, "T", stalled=15)
    made = server.until(stalled, lambda d: d.n < d.before)
    assert (stalled.regime, made.n) == ("kv", 85)
    made = Formula(linear, "T", slots=50).until(queued, lambda d: d.n < d.before)
    assert (queued.regime, made.n) == ("cap", 56)


def test_the_brake_waits_until_the_last_step_down_has_drained() -> None:
    server, one = Formula(flat_from(8), slots=8), controller(40)
    server.until(one, lambda d: d.n == 10)
    server.in_flight = 38
    assert {d.reason for d in server.drive(one, 20)} == {"draining"}
    assert one.n == 10


def test_a_floor_against_a_neighbour_that_does_not_give_way() -> None:
    server, one = Formula(flat_from(20), slots=20, others=64), controller(16)
    server.drive(one, 400)
    # It gets a fifth of the slots; without the floor it would end at 2.
    assert min(d.n for d in server.decisions) >= 8


# --- refine


def refined(curve: object, start: int, polls: int = 1500, prompts: float | None = None) -> int:
    """The N held, probes aside, by one that took over at `start` and was left alone a while."""
    assert callable(curve)
    one = Controller(Bounds(16), Remembered(start, phase="hold"), running=start)
    assert one.phase == "refine"
    Formula(curve, prompts=prompts).drive(one, polls)
    return one.memory.n


def test_refining_goes_up_for_a_gain_and_down_for_no_loss() -> None:
    assert 90 <= refined(flat_from(100), 80) <= 108
    assert 90 <= refined(flat_from(100), 130) <= 108
    assert 90 <= refined(cliff_at(100), 130) <= 108


def test_steps_down_that_cost_little_do_not_add_up() -> None:
    # Each step of 8 % costs 1.2 %: one is taken, many would be a slide.
    assert refined(lambda n: n**0.15, 100, 4000) >= 85


def test_a_probe_that_finds_a_steep_rise_begins_another_ramp() -> None:
    server = Formula(flat_from(300))
    one = Controller(Bounds(16), Remembered(100, phase="hold"), running=100)
    made = server.until(one, lambda d: d.phase == "ramp")
    assert made.n == 112


def bent_at(half: float) -> Callable[[float], float]:
    """Bounded by compute: it bends slowly, and nothing tells where it ends."""
    return lambda n: 30.0 * n / math.hypot(1.0, n / half)


@pytest.mark.parametrize("half", [40, 100])
def test_a_curve_that_rises_slowly_is_followed(half: int) -> None:
    curve, one = bent_at(half), controller(16)
    Formula(curve, prompts=0.0).drive(one, 4000)
    assert curve(one.memory.n) >= 0.95 * curve(1024)


def test_small_steps_whose_gain_is_hidden_by_the_noise_are_taken_together() -> None:
    # A step of 12 % gains 1.4 %, less than a larger N has to; one of 25 % gains 2.7 %.
    assert refined(lambda n: 100.0 * n**0.12, 100, prompts=0.0) >= 150


def judged(search: Search, deltas: Sequence[float], counted: bool = True) -> list[float]:
    """The factors of the probes from 1000 on, when they give so much and fail."""
    window, factors = Window(), []
    window.counted = counted
    for delta in deltas:
        assert search.begin(1000, 1, math.inf, 0.0, window)
        probe = search.probe
        assert probe is not None
        factors.append(probe.other / probe.base)
        search.judged(probe, Verdict(False, delta, 4), 0.0)
    return factors


def test_a_probe_is_widened_while_the_wider_one_gains_more_than_half_as_much() -> None:
    up, down = pytest.approx(1.12), pytest.approx(1 / 1.12, abs=1e-3)

    def refining(*deltas: float) -> list[float]:
        search = Search()
        search.refine()
        return judged(search, deltas)

    assert refining(0.015, 0.018, 0.0) == [up, pytest.approx(1.254), down]
    # While holding, where steps are smaller, there is room for three.
    search = Search()
    search.hold(0.0)
    small, wider = pytest.approx(1.08), pytest.approx(1.166)
    assert judged(search, [0.015, 0.018, 0.02, 0.0])[:3] == [small, wider, pytest.approx(1.3)]
    search.hold(0.0)
    assert judged(search, [0.015, 0.007, 0.0]) == [small, wider, pytest.approx(1 / 1.08, abs=1e-3)]
    assert refining(-0.001, 0.0) == [up, down]
    # Where prompts are not counted, a larger step seems to gain what was not taken in meanwhile.
    search = Search()
    search.refine()
    assert judged(search, [0.015, 0.0], counted=False) == [up, down]


def test_beyond_a_fall_that_a_ramp_has_seen_a_probe_takes_a_very_small_step() -> None:
    search, window = Search(), Window()

    def tried(n: int) -> int:
        assert search.begin(n, 1, 1e9, 0.0, window)
        assert search.probe is not None
        return search.probe.other

    search.refine()
    search.fell_at = 1100
    assert [tried(n) for n in (900, 1000, 1050, 1090)] == [1008, 1100, 1100, 1117]
    search.forget()
    assert tried(1000) == 1120


def test_a_ramp_tells_a_fall_from_a_plateau() -> None:
    def ramped(curve: Callable[[float], float]) -> Ramp:
        server, window, ramp, n = Formula(curve), Window(), Ramp(16, True, False, 64), 16
        for _ in range(1000):
            sample = window.add(server.seen(n))
            step = ramp.feed(sample, window, 1e9) if sample is not None else None
            n = n if step is None else step.n
            if step is not None and step.end == "flat":
                return ramp
        raise AssertionError(n)

    assert ramped(cliff_at(100)).fell
    assert not ramped(flat_from(100)).fell


def test_where_polls_differ_by_chance_steps_are_larger() -> None:
    search = Search()
    search.refine()
    assert search.begin(1000, 1, math.inf, 0.0, looked_at(by_chance(0.1)))
    assert search.probe is not None
    assert search.probe.other == 1405
    search.refine()
    assert search.begin(1000, 1, math.inf, 0.0, looked_at(wandering(0.02)))
    assert search.probe.other == 1120


def test_where_polls_differ_by_chance_a_probe_looks_for_longer() -> None:
    def polls(window: Window) -> int:
        probe = Probe(100, 100, GAIN)
        for poll in itertools.count(1):
            if probe.feed(polled(poll, 100, 1000.0), window) is not None:
                return poll
        raise AssertionError

    assert polls(looked_at(by_chance(0.1))) > 2 * polls(looked_at(wandering(0.0)))


def test_where_polls_differ_by_chance_a_ramp_takes_wide_steps_after_long_looks() -> None:
    def first(window: Window) -> tuple[int, int]:
        ramp = Ramp(100, True, True, 0)
        for poll in itertools.count(1):
            step = ramp.feed(polled(poll, 100, 1000.0), window, 1000.0)
            if step is not None:
                return step.n, poll
        raise AssertionError

    n, polls = first(looked_at(wandering(0.0)))
    wide, long = first(looked_at(by_chance(0.1)))
    assert (n, wide) == (106, 119)
    assert long > polls + 2


def test_where_polls_differ_by_chance_a_ramp_checks_against_an_n_further_below() -> None:
    def step_back(window: Window) -> float:
        ramp, n = Ramp(100, True, True, 0), 100
        for poll in itertools.count(1):
            step = ramp.feed(polled(poll, n, min(n, 150)), window, 1000.0)
            if step is not None and step.n < n:
                return n / step.n
            n = n if step is None else step.n
        raise AssertionError

    assert step_back(looked_at(wandering(0.0))) == pytest.approx(1.06, abs=0.01)
    assert step_back(looked_at(by_chance(0.1))) > 1.4


def test_where_polls_differ_by_chance_a_ramp_goes_on_for_less() -> None:
    def ends(window: Window) -> bool:
        """Whether the ramp ends by ten times its first N where throughput is N to the .12."""
        ramp, n = Ramp(100, True, True, 0), 100
        for poll in itertools.count(1):
            step = ramp.feed(polled(poll, n, n**0.12), window, 1000.0)
            n = n if step is None else step.n
            if step is not None and step.end is not None:
                return step.end == "flat"
        raise AssertionError

    assert ends(looked_at(wandering(0.0)))
    assert not ends(looked_at(by_chance(0.1)))


def test_only_a_gain_undoes_the_fall_that_a_ramp_has_seen() -> None:
    def tried(*deltas: float) -> int:
        """Probes from 1000, the first upwards, each with the gain that its eight turns found."""
        search = Search()
        search.refine()
        search.fell_at = 900
        for delta in deltas:
            assert search.begin(1000, 1, math.inf, 0.0, looked_at(wandering(0.0)))
            assert search.probe is not None
            search.judged(search.probe, Verdict(False, delta, 8), 0.0)
        return search.fell_at

    assert tried(0.015) == 0
    assert tried(-0.01) == 900
    assert tried(-0.01, -0.02) == 900  # less than a quarter of what N was lowered by


def test_after_a_gain_probes_begin_anew_with_small_steps() -> None:
    search = Search()
    search.refine()
    assert judged(search, [0.015]) == [pytest.approx(1.12)]
    assert search.begin(1000, 1, math.inf, 0.0, Window())
    assert search.probe is not None
    assert search.probe.other == 1254
    search.judged(search.probe, Verdict(True, 0.05, 4), 0.0)
    assert judged(search, [0.0]) == [pytest.approx(1.12)]


def test_a_wider_probe_stays_below_what_is_allowed() -> None:
    search, window = Search(), Window()
    search.refine()
    judged(search, [0.015])
    assert search.begin(1000, 1, 1200.5, 0.0, window)
    assert search.probe is not None
    assert search.probe.other == 1200
    assert not search.begin(1000, 1, 1100.0, 0.0, window)


# --- hold


def held(server: Formula, start: int = 16) -> Controller:
    one = controller(start)
    server.until(one, lambda d: d.phase == "hold")
    return one


def test_nothing_is_learnt_while_there_is_too_little_to_send() -> None:
    server = Formula(flat_from(100))
    one = held(server)
    n, server.share = one.n, 0.5
    made = server.drive(one, 1000)
    assert {d.n for d in made} == {n}
    assert {d.reason for d in made} == {"too little to send to learn from"}


def test_probes_become_rarer_when_they_find_nothing() -> None:
    server = Formula(cliff_at(100))
    one = held(server)
    before = len(server.decisions)
    server.drive(one, 6000)
    ends = [d.at for d in server.decisions[before:] if "against" in d.reason]
    gaps = [later - sooner for sooner, later in itertools.pairwise(ends)]
    assert gaps[-1] > 3 * gaps[0]


def test_the_cache_is_kept_about_full_where_it_is_the_limit() -> None:
    per_request = 1 / 200
    server = Formula(linear, kv_of=lambda n: min(1.0, n * per_request))
    one = held(server)
    per_request = 1 / 170  # longer documents
    server.drive(one, 200)
    assert 0.93 * 170 <= one.n <= 0.985 * 170
    per_request = 1 / 220
    server.drive(one, 600)
    assert 0.93 * 220 <= one.n <= 0.985 * 220


def test_a_fall_by_more_than_a_third_halves_n_and_ramps_again() -> None:
    server = Formula(flat_from(100))
    one = held(server)
    server.until(one, lambda d: d.reason == "holding", 200)
    server.drive(one, 200)
    n, curve = one.n, server.curve
    server.curve = lambda load: 0.6 * curve(load)
    made = server.until(one, lambda d: d.n < 0.6 * n, 100)
    assert made.reason == "throughput fell by more than a third"
    assert (made.n, made.phase) == (math.ceil(made.before / 2), "ramp")


def test_timeouts_halve_n_and_a_few_do_not() -> None:
    server = Formula(flat_from(100))
    one = held(server)
    server.drive(one, 50)
    server.timeouts = 3
    made = server.drive(one, 1)[0]
    server.timeouts = 0
    assert made.n == made.before
    server.timeouts = 30
    made = server.until(one, lambda d: d.n < d.before, 20)
    assert made.reason == "requests time out"


def test_timeouts_of_what_was_sent_before_do_not_halve_again() -> None:
    server = Formula(linear)
    one = controller(100)
    server.drive(one, 3)
    server.timeouts = 30
    made = server.until(one, lambda d: d.n < d.before, 20)
    server.in_flight = 100
    server.drive(one, 10)
    assert one.n == made.n
    server.in_flight, server.timeouts = None, 0
    server.drive(one, 1)
    assert one.n == made.n


# --- overload


def test_a_refusal_lowers_n_by_a_quarter_and_is_waited_out() -> None:
    server, one = Formula(linear), controller(100)
    server.drive(one, 2)
    server.overloads, server.retry_after_s = 5, 60.0
    (made,) = server.drive(one, 1)
    assert (made.n, made.reason) == (75, "the server refuses work")
    (made,) = server.drive(one, 1)  # those that were refused with it
    assert made.n == 75
    server.overloads = 0
    waits = server.drive(one, 11)
    assert {d.reason for d in waits[1:]} == {"the server asked to wait"}
    assert one.n == 75


def test_a_server_that_goes_on_refusing_is_given_way_to() -> None:
    server, one = Formula(linear, overloads=1), controller(100)
    server.drive(one, 100)
    assert one.n < 20
    server.drive(one, 3000)
    assert one.n == 1


# --- memory


def test_a_later_run_starts_at_seven_tenths() -> None:
    assert Controller(Bounds(16), Remembered(200)).n == 140
    assert Controller(Bounds(16, most=100), Remembered(200)).n == 100
    assert Controller(Bounds(16), Remembered(1)).n == 1


def test_what_is_remembered() -> None:
    server = Formula(flat_from(100))
    one = held(server)
    memory = one.memory
    assert 85 <= memory.n <= 115
    assert memory.mean_tokens == pytest.approx(300.0)
    assert memory.phase == "hold"


def test_a_takeover_goes_on_from_the_n_in_force() -> None:
    ramping = Controller(Bounds(16), Remembered(60, phase="ramp"), running=64)
    assert (ramping.n, ramping.phase) == (64, "ramp")
    holding = Controller(Bounds(16), Remembered(100, phase="hold"), running=104)
    assert (holding.n, holding.phase) == (104, "refine")


# --- levels


def test_an_n_that_gave_clearly_more_is_found() -> None:
    levels = Levels()
    levels.add(100, 1000.0, 300.0, 0.0, 50.0)
    levels.add(110, 995.0, 300.0, 300.0, 50.0)
    levels.add(150, 850.0, 60.0, 360.0, 50.0)
    assert levels.better(150, 360.0, 50.0, 0.0) is None  # not looked at for long enough
    levels.add(150, 850.0, 60.0, 420.0, 50.0)
    assert levels.better(150, 420.0, 50.0, 0.0) == 100  # the smaller of two that are alike
    assert levels.better(150, 420.0, 50.0, 1.0) is None  # may be chance
    levels.add(140, 2000.0, 10.0, 420.0, 50.0)  # passed by in a moment
    assert levels.better(150, 420.0, 50.0, 0.0) == 100
    assert levels.better(110, 420.0, 50.0, 0.0) is None
    assert levels.better(150, 9000.0, 50.0, 0.0) is None  # too long ago
    levels.clear()
    assert levels.better(150, 420.0, 50.0, 0.0) is None


def test_an_n_that_gave_more_while_the_server_was_faster_is_not_gone_back_to() -> None:
    speed = 1.0
    server = Formula(lambda n: speed * flat_from(100)(n))
    one = Controller(Bounds(16), Remembered(80, phase="hold"), running=80)
    for _ in range(3):
        server.until(one, lambda d: d.phase == "hold" and "N 98 against 106" in d.reason)
    speed = 0.8
    told = server.until(one, lambda d: "clearly more" in d.reason)
    assert told.n == 106
    for _ in range(400):
        server.drive(one, 1)
        assert one.memory.n > 90


def test_what_a_probe_adds_may_queue_for_a_moment() -> None:
    server = Formula(flat_from(1000, 0.2))
    one = Controller(Bounds(16), Remembered(80, phase="hold"), running=80)
    before, found = 80, []
    for _ in range(100):
        server.slots = before if one.n > before else 10_000
        before = one.n
        found += [d.reason for d in server.drive(one, 1)]
    assert any(" against 80: +" in reason for reason in found)
    assert "requests queue in the server" not in found


def test_decisions_carry_their_inputs() -> None:
    server, one = Formula(flat_from(8), slots=8), controller(16)
    made = server.drive(one, 4)[-1]
    assert made.noted
    assert made.inputs["running"] == 8.0
    assert made.inputs["waiting"] == 8.0
    assert made.inputs["in_flight"] == 16.0
    assert made.inputs["tokens_per_s"] == pytest.approx(flat_from(8)(8), rel=0.01)
