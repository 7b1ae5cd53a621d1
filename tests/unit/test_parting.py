"""A worker that stops waits for Redis, but not for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fanout_workers.parting import LOOKS, PATIENCE_S, Parting
from fanout_workers.pool import pool


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def parting(answers: list[bool], clock: Clock) -> Parting:
    return Parting(lambda: answers.pop(0), lambda: None, clock)


def test_it_ends_once_redis_has_been_away_for_long_enough() -> None:
    clock = Clock()
    watch = parting([False] * 20, clock)
    looks = []
    for _ in range(20):
        looks.append(watch.look())
        clock.now += PATIENCE_S / 10
        if looks[-1]:
            break
    assert looks == [False] * 10 + [True]


def test_a_redis_that_is_back_in_time_ends_nothing() -> None:
    clock = Clock()
    watch = parting([False, False, False, False, True, False, True], clock)
    for _ in range(7):
        assert not watch.look()
        clock.now += PATIENCE_S / 4.5


def test_a_process_that_was_suspended_looks_more_than_once() -> None:
    clock = Clock()
    watch = parting([False] * LOOKS, clock)
    looks = []
    for _ in range(LOOKS):
        looks.append(watch.look())
        clock.now += 100 * PATIENCE_S
    assert looks == [False] * (LOOKS - 1) + [True]


class BrokenHub:
    """A hub whose every turn fails, as with a broker that is away."""

    def __init__(self) -> None:
        self.turns = 0

    def create_loop(self) -> Iterator[None]:
        self.turns += 1
        raise ConnectionError("away")
        yield

    def reset(self) -> None: ...

    def add_reader(self, *_: object) -> None: ...

    def remove_reader(self, *_: object) -> None: ...


def test_a_hub_that_fails_at_each_turn_is_not_asked_in_a_hot_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub, rests = BrokenHub(), list[float]()
    monkeypatch.setattr(pool.time, "sleep", rests.append)
    stopping = object.__new__(pool.AsyncPool)
    stopping._hub, stopping._bell = hub, pool.Bell()
    monkeypatch.setattr(stopping, "_settle", lambda: None)
    stopping._run_hub_until(lambda: hub.turns > 50)
    stopping._bell.close()
    assert len(rests) >= 50
    assert len(caplog.records) == 1
