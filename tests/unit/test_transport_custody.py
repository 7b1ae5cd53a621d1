"""When a process renews, tells Redis, and hands out what others have held too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from fanout_workers.transport import custody as module
from fanout_workers.transport.custody import Custody
from fanout_workers.transport.holdings import Place, Return


class Broker:
    """Notes what it is told, and fails if it is away."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.is_away = False

    def _tell(self, what: str, value: Any) -> None:
        if self.is_away:
            raise redis.ConnectionError("away")
        self.told.append((what, value))

    def renew(self, tags: list[str]) -> None:
        self._tell("renew", tags)

    def settle(self, tags: list[str]) -> None:
        self._tell("settle", tags)

    def give_back(self, returns: list[Return]) -> None:
        if returns:
            self._tell("give back", [item.tag for item in returns])

    def redeliver(self, timeout_s: float, limit: int | None, lookup: Callable[..., Any]) -> int:
        self._tell("redeliver", timeout_s)
        return 1


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def custody(broker: Broker, clock: Clock) -> Custody:
    return Custody(broker, 120.0)  # type: ignore[arg-type]


def no_queues(exchange: str, routing_key: str) -> list[str]:
    return []


def test_renews_what_is_here_before_it_takes_from_others(
    custody: Custody, broker: Broker, clock: Clock
) -> None:
    custody.holdings.admit("a", "q")
    custody.renew()
    clock.now += 40
    broker.told.clear()
    assert custody.redeliver(None, no_queues) == 1
    assert broker.told == [("renew", ["a"]), ("redeliver", 120.0)]


def test_takes_nothing_from_others_before_they_could_renew(
    custody: Custody, broker: Broker, clock: Clock
) -> None:
    assert custody.redeliver(None, no_queues) == 0
    clock.now += 39
    assert custody.redeliver(None, no_queues) == 0
    clock.now += 1
    assert custody.redeliver(None, no_queues) == 1


def test_an_outage_is_noticed_also_by_who_holds_nothing(custody: Custody, broker: Broker) -> None:
    custody.renew()
    broker.is_away = True
    with pytest.raises(redis.ConnectionError):
        custody.renew()


def test_what_redis_did_not_hear_is_told_again(custody: Custody, broker: Broker) -> None:
    for tag in ("a", "b"):
        custody.holdings.admit(tag, "q")
    custody.holdings.settle("a")
    custody.holdings.give_back("b", Place.BACK)
    broker.is_away = True
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            custody.flush()
    broker.is_away = False
    custody.flush()
    assert broker.told == [("settle", ["a"]), ("give back", ["b"])]
    assert not custody.holdings.has_errands


def test_at_the_end_of_the_process_everything_goes_back(custody: Custody, broker: Broker) -> None:
    for tag in ("a", "b", "c"):
        custody.holdings.admit(tag, "q")
    custody.holdings.settle("b")
    custody.close()
    assert broker.told == [("settle", ["b"]), ("give back", ["c", "a"])]


def test_the_end_of_the_process_outlives_a_redis_that_is_away(
    custody: Custody, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    custody.holdings.admit("a", "q")
    broker.is_away = True
    custody.close()
    assert "1 messages to be handed out again" in caplog.text
