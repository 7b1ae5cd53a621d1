"""What a process knows of the messages it has: kept, settled, given back, handed out again."""

from __future__ import annotations

import pytest

from fanout_workers.transport.broker import Keys
from fanout_workers.transport.holdings import Holdings, Place, Return


class Message:
    """Whatever Celery keeps of a message."""


def taken(*tags: str, running: set[str] | None = None, remembered: int = 10) -> Holdings:
    holdings = Holdings(lambda: running, remembered)
    for tag in tags:
        assert holdings.admit(tag, "q")
    return holdings


def test_a_redelivery_of_what_is_held_is_not_admitted() -> None:
    holdings = taken("a")
    assert not holdings.admit("a", "q")
    assert not holdings.has_errands  # its acknowledgement is still to come


def test_a_redelivery_of_what_was_settled_is_settled_again() -> None:
    holdings = taken("a")
    holdings.settle("a")
    assert holdings.take_acks(9) == ["a"]
    assert not holdings.admit("a", "q")
    assert holdings.take_acks(9) == ["a"]


def test_the_same_tag_in_another_queue_is_another_message() -> None:
    holdings = taken("a")
    assert holdings.admit("a", "other")


@pytest.mark.parametrize("place", list(Place))
def test_what_was_given_back_may_come_again(place: Place) -> None:
    holdings = taken("a")
    holdings.give_back("a", place)
    assert holdings.take_returns() == [Return("a", "q", place)]
    assert holdings.admit("a", "q")


def test_only_the_last_are_remembered() -> None:
    holdings = taken("a", "b", "c", remembered=2)
    for tag in ("a", "b", "c"):
        holdings.settle(tag)
    assert holdings.admit("a", "q")
    assert not holdings.admit("b", "q")
    assert not holdings.admit("c", "q")


def test_acknowledgements_that_did_not_arrive_are_told_again() -> None:
    holdings = taken("a", "b", "c")
    for tag in ("a", "b", "c"):
        holdings.settle(tag)
    first = holdings.take_acks(2)
    assert first == ["a", "b"]
    holdings.put_acks(first)
    assert sorted(holdings.take_acks(9)) == ["a", "b", "c"]
    assert not holdings.has_errands


def test_what_goes_to_the_front_is_put_back_last_first() -> None:
    holdings = taken("a", "b", "c", "d")
    holdings.give_back("a", Place.FRONT)
    holdings.give_back("b", Place.BACK)
    holdings.give_back("c", Place.FRONT)
    holdings.give_back("d", Place.BACK)
    assert [item.tag for item in holdings.take_returns()] == ["b", "d", "c", "a"]


def test_a_lost_connection_gives_back_only_what_nobody_has() -> None:
    holdings = taken("kept", "dropped", "unseen")
    kept, dropped = Message(), Message()
    holdings.lose({"kept": kept, "dropped": dropped, "unseen": None})
    assert [item.tag for item in holdings.take_returns()] == ["unseen"]
    del dropped
    assert [item.tag for item in holdings.take_returns()] == ["dropped"]
    assert set(holdings.held) == set(holdings.lost) == {"kept"}
    assert not holdings.admit("kept", "q")
    holdings.settle("kept")
    del kept
    assert not holdings.held
    assert not holdings.lost
    assert not holdings.returns


def test_what_was_settled_before_the_loss_is_not_lost() -> None:
    holdings = taken("a")
    holdings.settle("a")
    holdings.lose({"a": None})
    assert not holdings.returns


def test_of_what_was_lost_only_running_tasks_are_renewed() -> None:
    holdings = taken("runs", "forgotten", "new", running={"runs"})
    messages = {"runs": Message(), "forgotten": Message()}
    holdings.lose(messages)
    assert sorted(holdings.renewable()) == ["new", "runs"]
    assert not holdings.admit("runs", "q")
    # A pool still has it, but will never run it: whoever gets it now has to.
    assert holdings.admit("forgotten", "q")
    messages.clear()
    assert [item.tag for item in holdings.take_returns()] == ["runs"]


def test_where_nobody_knows_what_runs_all_is_renewed() -> None:
    holdings = taken("a", running=None)
    message = Message()
    holdings.lose({"a": message})
    assert holdings.renewable() == ["a"]


class TestKeys:
    KEYS = Keys("p:", "p:unacked", "p:unacked_index", "\x06\x16", (0, 3, 6, 9))

    def test_of_a_fetch_go_by_priority(self) -> None:
        assert self.KEYS.of_fetch(["a", "b"])[3:7] == [
            *("p:a", "p:b", "p:a\x06\x163", "p:b\x06\x163")
        ]
        assert len(self.KEYS.of_fetch(["a", "b"])) == 3 + 2 * 4
        assert self.KEYS.of_fetch([]) == ["p:unacked", "p:unacked_index", ""]

    @pytest.mark.parametrize(
        ("priority", "key"),
        [
            *((0, "p:q"), (2, "p:q"), (-1, "p:q"), (None, "p:q"), ("high", "p:q")),
            *((3, "p:q\x06\x163"), (8, "p:q\x06\x166"), (99, "p:q\x06\x169")),
        ],
    )
    def test_of_a_message(self, priority: object, key: str) -> None:
        assert self.KEYS.of_message("q", {"properties": {"priority": priority}}) == key
