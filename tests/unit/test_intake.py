"""How many items a process holds: by a clock that the test turns, and against a real QoS."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kombu.common import QoS

from fanout import Endpoint
from fanout_workers.intake import EVERY_S, IDLE_S, RESERVE, RESERVE_S, Gauge, Intake
from fanout_workers.permits import Permits


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_quota_and_a_small_reserve(clock: Clock) -> None:
    gauge = Gauge(clock)
    assert gauge.wanted(quota=256, started=0, held=0, busy=0) == 256 + RESERVE


def test_the_reserve_grows_with_the_rate_at_once_and_shrinks_slowly(clock: Clock) -> None:
    gauge = Gauge(clock)
    clock.now += 1.0
    gauge.wanted(256, started=400, held=256, busy=256)
    assert gauge.reserve == RESERVE + 400 * RESERVE_S
    clock.now += 1.0
    gauge.wanted(256, started=400, held=256, busy=256)
    assert RESERVE < gauge.reserve < RESERVE + 400 * RESERVE_S
    for _ in range(100):
        clock.now += 1.0
        gauge.wanted(256, started=400, held=256, busy=256)
    assert gauge.reserve == RESERVE


def test_items_that_back_off_do_not_keep_the_reserve_small(clock: Clock) -> None:
    gauge = Gauge(clock)
    assert gauge.wanted(quota=8, started=0, held=20, busy=10) == 8 + 10 + RESERVE
    # But not without end: a server that refuses everything must not empty the queue.
    assert gauge.wanted(quota=8, started=0, held=5000, busy=0) == 8 + 8 + RESERVE + RESERVE


def test_without_quota_for_a_while_nothing_is_wanted(clock: Clock) -> None:
    gauge = Gauge(clock)
    assert gauge.wanted(0, 0, 0, 0) == RESERVE
    clock.now += IDLE_S - EVERY_S
    assert gauge.wanted(0, 0, 0, 0) == RESERVE
    clock.now += EVERY_S
    assert gauge.wanted(0, 0, 0, 0) == 0
    assert gauge.wanted(1, 0, 0, 0) == 1 + RESERVE
    clock.now += 1.0
    assert gauge.wanted(0, 0, 0, 0) == RESERVE


class Pool:
    """The part of a pool that the intake sees."""

    def __init__(self) -> None:
        self.num_processes = RESERVE
        self.num_held = 0

    def grow(self, n: int) -> None:
        self.num_processes += n

    def shrink(self, n: int) -> None:
        self.num_processes -= n


class Worker:
    """Celery's consumer, as far as the intake needs it, and what it was told."""

    def __init__(self, clock: Clock, concurrency: int) -> None:
        self.told: list[str] = []
        self.consumes = True
        self.permits = Permits(
            [Endpoint(name="a", url="http://127.0.0.1:1", concurrency=concurrency)]
        )
        self.pool = Pool()
        self.consumer: Any = SimpleNamespace(
            pool=self.pool,
            qos=QoS(lambda prefetch_count: None, RESERVE),
            initial_prefetch_count=RESERVE,
            task_consumer=SimpleNamespace(consuming_from=lambda queue: self.consumes),
            add_task_queue=lambda queue: self.told.append(f"add {queue}"),
            cancel_task_queue=lambda queue: self.told.append(f"cancel {queue}"),
        )
        self.intake = Intake(self.permits, "q", lambda: self.told.append("send back"), clock)

    def adjust(self) -> tuple[int, int]:
        self.intake.adjust(self.consumer)
        assert self.consumer.initial_prefetch_count == self.consumer.qos.value
        return self.pool.num_processes, self.consumer.qos.value


def test_slots_and_prefetch_follow_the_quota_up_and_down(clock: Clock) -> None:
    worker = Worker(clock, 4)
    assert worker.adjust() == (4 + RESERVE,) * 2
    worker.permits.set_limit("a", 192)
    assert worker.adjust() == (192 + RESERVE,) * 2
    worker.permits.set_limit("a", 2)
    assert worker.adjust() == (2 + RESERVE,) * 2


def test_slots_are_not_taken_from_under_what_is_held(clock: Clock) -> None:
    worker = Worker(clock, 192)
    worker.adjust()
    worker.pool.num_held = 192
    worker.permits.set_limit("a", 2)
    slots, prefetch = worker.adjust()
    assert (slots, prefetch) == (192, 2 + 2 + 2 * RESERVE)


def test_without_quota_the_queue_is_left_and_with_one_it_is_taken_up_again(clock: Clock) -> None:
    worker = Worker(clock, 4)
    worker.permits.set_limit("a", 0)
    worker.adjust()
    assert worker.told == []
    clock.now += IDLE_S
    worker.adjust()
    worker.adjust()
    assert worker.told == ["cancel q", "send back", "send back"]
    worker.permits.set_limit("a", 4)
    assert worker.adjust() == (4 + RESERVE,) * 2
    assert worker.told[3:] == ["add q"]


def test_there_is_room_for_what_is_wanted_and_not_held_unless_nothing_is_consumed(
    clock: Clock,
) -> None:
    worker = Worker(clock, concurrency=8)
    worker.pool.num_held = 3
    worker.adjust()
    assert worker.intake.room == worker.consumer.qos.value - 3
    worker.consumes = False  # by Celery's remote control
    worker.adjust()
    assert worker.intake.room == 0
