"""The tree of failures: what an HTTP status means and what follows from each kind."""

from __future__ import annotations

import re

import pytest

from fanout import failures
from fanout.failures import ADVICE, POLICIES, RETRY_AFTER_MAX, Failure, Kind, Policy, kind_of_status


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, Kind.REQUEST),
        (400, Kind.REQUEST),
        (401, Kind.REQUEST),
        (403, Kind.REQUEST),
        (404, Kind.REQUEST),
        (408, Kind.TIMEOUT),
        (413, Kind.REQUEST),
        (422, Kind.REQUEST),
        (429, Kind.OVERLOAD),
        (500, Kind.SERVER),
        (501, Kind.SERVER),
        (502, Kind.SERVER),
        (503, Kind.OVERLOAD),
        (504, Kind.SERVER),
        (529, Kind.OVERLOAD),
        (599, Kind.SERVER),
    ],
)
def test_status_gives_kind(status: int, kind: Kind) -> None:
    assert kind_of_status(status) is kind


def test_every_kind_is_in_the_drawn_tree_and_has_a_policy_and_advice() -> None:
    drawn = re.findall(r"[├└]── (\w+)", failures.__doc__ or "")
    assert drawn == [kind.value for kind in Kind]
    assert list(POLICIES) == list(Kind)
    assert list(ADVICE) == list(Kind)


def test_an_answer_that_is_no_good_is_invalid_and_everything_else_failed() -> None:
    invalid = {kind for kind in Kind if kind.ends_as == "invalid"}
    assert invalid == {Kind.TRUNCATED, Kind.REASONING, Kind.EMPTY, Kind.SCHEMA}
    assert {kind.ends_as for kind in set(Kind) - invalid} == {"failed"}


def test_no_kind_is_tried_for_ever() -> None:
    assert all(1 <= policy.tries <= 1000 for policy in POLICIES.values())
    assert POLICIES[Kind.REQUEST].tries == 1
    assert POLICIES[Kind.POISON].tries == 1


def test_only_what_waiting_can_mend_waits() -> None:
    waiting = {kind for kind, policy in POLICIES.items() if policy.backoff}
    assert waiting == {Kind.CONNECT, Kind.OVERLOAD, Kind.SERVER}


@pytest.mark.parametrize(
    ("policy", "pauses"),
    [
        (Policy(tries=9, backoff=1, backoff_max=5), [1, 2, 4, 5, 5]),
        (Policy(tries=9, backoff=0.5, backoff_max=30, at_once=True), [0, 0.5, 1, 2, 4]),
        (Policy(tries=9), [0, 0, 0, 0, 0]),
    ],
)
def test_pauses_double_up_to_a_limit(policy: Policy, pauses: list[float]) -> None:
    assert [policy.pause(failed) for failed in range(1, 6)] == pauses


def test_a_connection_is_tried_again_at_once_and_then_backs_off() -> None:
    assert [POLICIES[Kind.CONNECT].pause(n) for n in (1, 2, 3)] == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("retry_after", "pause"), [(7.5, 7.5), (0.0, 1.0), (-3.0, 1.0), (1e9, RETRY_AFTER_MAX)]
)
def test_retry_after_is_honoured_within_bounds(retry_after: float, pause: float) -> None:
    assert Policy(tries=9, backoff=1, backoff_max=5).pause(1, retry_after) == pause


def test_an_outage_of_days_does_not_overflow() -> None:
    assert Policy(tries=9, backoff=1.5, backoff_max=30).pause(1_000_000) == 30


def test_a_failure_says_its_kind_and_message() -> None:
    failure = Failure(Kind.REQUEST, "no such model", status=404, raw="{}")
    assert str(failure) == "request: no such model"
    assert (failure.kind, failure.message, failure.status) == (Kind.REQUEST, "no such model", 404)
    assert (failure.retry_after, failure.raw, failure.usage) == (None, "{}", None)
