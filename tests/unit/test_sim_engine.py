"""The simulator's engine: published waves, and what a scheduler must never do."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from fanout.errors import UsageError
from fanout.sim import PROFILES, Engine, Profile, QueueFull, Sequence, State, Work, load_profile
from fanout.sim.curves import DENSE, MAMBA, MOE

#: c: output tokens/s, as published for waves of c requests (1,500 tokens in, 400 out).
PUBLISHED = {
    DENSE: {
        1: 5.79, 2: 11.43, 4: 22.79, 8: 45.41, 16: 86.47, 32: 161.90, 48: 227.71, 64: 289.00,
        96: 390.41, 128: 490.68, 160: 547.89, 192: 607.82, 224: 651.61, 256: 695.11, 320: 514.69,
    },
    MOE: {
        1: 33.53, 2: 59.52, 4: 87.56, 8: 123.39, 16: 173.19, 32: 252.30, 64: 373.27, 96: 481.35,
        128: 564.71, 192: 705.41, 256: 862.84, 384: 771.17,
    },
    MAMBA: {
        1: 26.19, 2: 51.08, 8: 153.18, 16: 155.59, 32: 156.82, 64: 156.69, 128: 155.11,
        256: 154.97, 384: 153.75,
    },
}  # fmt: skip
PEAK = {DENSE: 256, MOE: 256, MAMBA: 32}
#: A server that is easy to reckon with: each sequence gains 10 tokens/s, up to four.
EASY = Profile(
    name="easy",
    points=((1, 10.0), (4, 40.0)),
    max_num_seqs=4,
    kv_capacity_tokens=1000,
    max_model_len=1000,
    prompt_tokens=0,
    output_tokens=1_000_000,
)


def run(engine: Engine, until: float = math.inf) -> list[Sequence]:
    """Let everything that is in the engine end; the sequences in the order of their ends."""
    done: list[Sequence] = []
    while (at := engine.next_at()) is not None and at <= until:
        done += engine.advance(at)
    return done


def wave(profile: Profile, count: int, prompt: int = 1500, output: int = 400) -> list[Sequence]:
    engine = Engine(profile)
    for number in range(count):
        engine.add(0.0, Work(str(number), prompt, output))
    done = run(engine)
    assert len(done) == count
    assert engine.gauges(ended(done[-1])).generation_tokens == count * output
    return done


def ended(sequence: Sequence) -> float:
    assert sequence.ended_at is not None
    return sequence.ended_at


@pytest.mark.parametrize(
    ("profile", "count", "published"),
    [(profile, c, rate) for profile, rows in PUBLISHED.items() for c, rate in rows.items()],
    ids=lambda value: value.alias if isinstance(value, Profile) else str(value),
)
def test_a_wave_takes_as_long_as_published(profile: Profile, count: int, published: float) -> None:
    aggregate = count * 400 / ended(wave(profile, count)[-1])
    bound = 0.03 if count <= PEAK[profile] else 0.05
    assert aggregate == pytest.approx(published, rel=bound)


def test_past_the_cliff_the_latest_arrivals_pay() -> None:
    done = wave(DENSE, 320)
    late = [one for one in done if one.preemptions]
    assert 50 <= len(late) <= 65
    assert {int(one.work.id) for one in late} == set(range(320 - len(late), 320))
    assert sum(400 / ended(one) for one in done) / 320 == pytest.approx(2.37, rel=0.07)


def test_the_mean_wait_behind_eight_slots_is_as_published() -> None:
    for count, mean in ((8, 21), (16, 31), (32, 52), (64, 94), (128, 179), (256, 342)):
        done = wave(MAMBA, count)
        assert sum(map(ended, done)) / count == pytest.approx(mean, rel=0.03)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.alias)
def test_longer_prompts_cost_prefill(profile: Profile) -> None:
    short, long = wave(profile, 8), wave(profile, 8, prompt=4500)
    more = 8 * 3000 / profile.prefill_tokens_per_s
    assert ended(long[-1]) - ended(short[-1]) == pytest.approx(more)


def test_longer_prompts_fill_the_cache_with_fewer_requests() -> None:
    def preempted(count: int, prompt: int) -> int:
        return sum(one.preemptions for one in wave(DENSE, count, prompt))

    assert preempted(256, 1500) == 0
    # 4,500 + 400 tokens: 102 of them fit, and 111 prompts.
    assert preempted(102, 4500) == 0
    assert preempted(111, 4500) > 0


def test_the_rate_of_all_changes_when_one_joins() -> None:
    slow = replace(EASY, points=((1, 10.0), (2, 10.0)))
    engine = Engine(slow)
    first = engine.add(0.0, Work("first", 0, 101))  # 100 steps after the first token
    engine.advance(0.0)
    assert engine.generated(first, 4.95) == 50
    engine.add(5.0, Work("second", 0, 21))
    engine.advance(5.1)
    assert engine.generated(first, 5.1) == 51
    assert engine.generated(first, 5.3) == 52
    # Now both have 5 tokens/s. The second ends after 20 steps, 4 s; the first has 30 steps left.
    done = run(engine)
    assert [one.work.id for one in done] == ["second", "first"]
    assert [ended(one) for one in done] == pytest.approx([9.0, 12.0], rel=1e-4)


def test_what_does_not_fit_waits_its_turn() -> None:
    engine = Engine(EASY)
    for number in range(6):
        engine.add(0.0, Work(str(number), 0, 11 + number))
    gauges = engine.gauges(0.5)
    assert (gauges.running, gauges.waiting) == (4, 2)
    done = run(engine)
    assert [one.admitted_at for one in done] == pytest.approx([0, 0, 0, 0, 1.0, 1.1], rel=1e-4)
    assert [one.work.id for one in done] == list("012345")


def test_the_last_to_come_is_preempted_and_is_the_first_to_come_back() -> None:
    engine = Engine(replace(EASY, kv_capacity_tokens=1000, prefill_tokens_per_s=1000.0))
    works = [Work(name, 400, 200) for name in "abc"]
    engine.add(0.0, works[0])
    second = engine.add(0.0, works[1])
    third = engine.add(0.0, works[2])  # no room for its prompt
    assert third.state is State.WAITING
    # Both grow to 100 tokens each, then the second has to go.
    engine.advance(0.8 + 10.5)
    assert second.state is State.WAITING
    assert second.preemptions == 1
    assert engine.generated(second, 11.3) == 100
    assert engine.gauges(11.3).waiting == 2
    done = run(engine)
    assert [one.work.id for one in done] == ["a", "b", "c"]
    # It takes its prompt and 100 tokens in again and waits for c's prompt, then has 99 more to go.
    assert ended(done[1]) - ended(done[0]) == pytest.approx(0.5 + 0.4 + 9.9, rel=0.01)
    assert done[1].first_token_at == pytest.approx(0.8)


def test_prefill_holds_decoding_up() -> None:
    engine = Engine(replace(EASY, prefill_tokens_per_s=100.0))
    first = engine.add(0.0, Work("first", 100, 11))
    second = engine.add(1.5, Work("second", 50, 11))
    done = run(engine)
    assert first.first_token_at == pytest.approx(1.0)
    assert second.first_token_at == pytest.approx(2.0)
    assert [ended(one) for one in done] == pytest.approx([2.5, 3.0], rel=1e-4)


def test_an_aborted_request_makes_room_at_once() -> None:
    engine = Engine(replace(EASY, max_num_seqs=1))
    first = engine.add(0.0, Work("first", 0, 100))
    second = engine.add(0.0, Work("second", 0, 11))
    third = engine.add(0.0, Work("third", 0, 11))
    assert engine.abort(1.0, first)
    assert engine.abort(1.0, third)
    assert not engine.abort(1.0, first)
    assert [one.work.id for one in run(engine)] == ["second"]
    assert second.admitted_at == 1.0
    gauges = engine.gauges(10.0)
    assert (gauges.running, gauges.waiting, gauges.kv_use) == (0, 0, 0.0)
    assert gauges.finished == {"stop": 1, "length": 0, "abort": 2}


def test_aborting_what_is_in_prefill_starts_the_next() -> None:
    engine = Engine(replace(EASY, prefill_tokens_per_s=100.0))
    first = engine.add(0.0, Work("first", 100, 2))
    second = engine.add(0.0, Work("second", 100, 2))
    third = engine.add(0.0, Work("third", 100, 2))
    engine.abort(0.5, second)
    engine.abort(0.5, first)
    run(engine)
    assert third.first_token_at == pytest.approx(1.5)


def test_a_full_queue_refuses() -> None:
    engine = Engine(EASY, max_num_seqs=1, queue_limit=2)
    engine.add(0.0, Work("runs", 0, 11))
    engine.add(0.0, Work("waits", 0, 11))
    with pytest.raises(QueueFull):
        engine.add(0.9, Work("refused", 0, 10))
    engine.add(1.1, Work("comes when there is room again", 0, 10))


def test_what_is_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="max_model_len"):
        Engine(EASY).add(0.0, Work("long", 900, 101))
    with pytest.raises(ValueError, match="output"):
        Engine(EASY).add(0.0, Work("nothing", 1, 0))


def mean_rate(engine: Engine, count: int) -> float:
    for number in range(count):
        engine.add(0.0, Work(str(number), 0, 200))
    return count * 200 / ended(run(engine)[-1])


def test_noise_is_seeded_and_has_the_mean_of_none() -> None:
    def noisy(seed: int) -> float:
        return mean_rate(Engine(EASY, seed=seed, noise=0.1), 2000)

    plain = mean_rate(Engine(EASY), 2000)
    assert noisy(1) == noisy(1) != noisy(2)
    assert noisy(1) == pytest.approx(plain, rel=0.03)


def test_a_cold_server_is_slow_at_first() -> None:
    engine = Engine(EASY, slow_start_s=60.0)
    first = engine.add(0.0, Work("first", 0, 11))
    run(engine)
    assert ended(first) > 5.0
    later = engine.add(100.0, Work("later", 0, 11))
    run(engine)
    assert ended(later) == pytest.approx(101.0, rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_no_token_is_lost_whatever_happens(seed: int) -> None:
    """Random arrivals, lengths and aborts over a cache that is far too small."""
    dice = random.Random(seed)
    profile = replace(
        EASY,
        points=((1, 10.0), (8, 50.0), (16, 60.0)),
        max_num_seqs=12,
        kv_capacity_tokens=2000,
        prefill_tokens_per_s=300.0,
    )
    engine = Engine(profile, seed=seed, noise=0.05)
    now, alive, done, aborted = 0.0, [], [], 0
    for number in range(1500):
        now += dice.expovariate(0.25)
        done += engine.advance(now)
        alive.append(engine.add(now, Work(str(number), dice.randint(0, 500), dice.randint(1, 300))))
        if dice.random() < 0.1:
            aborted += engine.abort(now, dice.choice(alive))
        gauges = engine.gauges(now)
        assert gauges.running <= 12
        assert 0 <= gauges.kv_use <= 1.0 + 1e-6
    done += run(engine)
    assert len(done) + aborted == 1500
    assert len({one.work.id for one in done}) == len(done)
    for one in done:
        assert one.admitted_at is not None
        assert one.first_token_at is not None
        assert one.arrived_at <= one.admitted_at <= one.first_token_at <= ended(one)
    gauges = engine.gauges(ended(done[-1]))
    assert gauges.preemptions > 0
    assert (gauges.running, gauges.waiting, gauges.kv_use) == (0, 0, 0.0)
    lost = sum(int(one.progress) for one in alive if one.state is State.ABORTED)
    finished = sum(one.work.output_tokens for one in done)
    assert finished + lost <= gauges.generation_tokens <= finished + lost + aborted + 1


def test_profiles_by_name_alias_and_file(tmp_path: Path) -> None:
    assert load_profile("moe") is load_profile("openai/gpt-oss-120b") is MOE
    body = {"points": [[1, 10], [4, 30.5]], "max_num_seqs": 4, "reasoning_tokens": {"low": 5}}
    (tmp_path / "mine.json").write_text(json.dumps(body))
    mine = load_profile(str(tmp_path / "mine.json"))
    assert (mine.name, mine.max_num_seqs, mine.points) == ("mine", 4, ((1, 10.0), (4, 30.5)))
    (tmp_path / "mine.toml").write_text("points = [[1, 10], [4, 30.5]]\nmax_num_seqs = 4\n")
    assert load_profile(str(tmp_path / "mine.toml")).points == mine.points


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "[1]",
        "no json",
        '{"points": []}',
        '{"points": [[4, 10], [1, 20]]}',
        '{"points": [[1, 0]]}',
        '{"points": [[1, 10]], "speed": 3}',
        '{"points": [[1, 1000]], "prefill_tokens_per_s": 1000}',
        '{"points": [[1, 10]], "kv_capacity_tokens": 10}',
        '{"points": [[1, 10]], "max_num_seqs": "many"}',
    ],
)
def test_a_broken_profile_is_one_sentence(tmp_path: Path, body: str) -> None:
    (tmp_path / "mine.json").write_text(body)
    with pytest.raises(UsageError):
        load_profile(str(tmp_path / "mine.json"))
    with pytest.raises(UsageError, match="no profile"):
        load_profile("nobody")


def test_the_curves_peak_where_they_were_published_to() -> None:
    def rates(profile: Profile) -> dict[int, float]:
        return {c: c * 400 / ended(wave(profile, c)[-1]) for c in PUBLISHED[profile]}

    dense, moe, mamba = rates(DENSE), rates(MOE), rates(MAMBA)
    assert max(dense, key=dense.__getitem__) == 256
    assert max(moe, key=moe.__getitem__) == 256
    assert all(rate == pytest.approx(mamba[8], rel=0.01) for c, rate in mamba.items() if c >= 8)


def test_a_closed_loop_past_the_cliff_is_slower_than_before_it() -> None:
    """N requests at all times, as a client with backlog has them."""

    def rate(n: int) -> float:
        dice = random.Random(n)
        engine, now, done, tokens = Engine(DENSE), 0.0, 0, 0
        for _ in range(n):
            engine.add(now, Work("", 1500, dice.randint(200, 600)))
        while done < 6 * n:
            now = engine.next_at() or now
            for one in engine.advance(now):
                done += 1
                tokens += one.work.output_tokens
                engine.add(now, Work("", 1500, dice.randint(200, 600)))
        assert (engine.gauges(now).preemptions > 0) == (n > 256)
        return tokens / now

    below, at, past = rate(128), rate(256), rate(400)
    assert below < past < at
