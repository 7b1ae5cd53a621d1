"""The derived timeout."""

from __future__ import annotations

import pytest

from fanout.errors import ConfigError
from fanout.settings import Endpoint
from fanout.timeouts import (
    DEFAULT_MIN_TOKENS_PER_S,
    check_timeouts,
    derive,
    largest,
    needed,
)


def test_the_derived_timeout_is_work_over_speed_with_room() -> None:
    timeout = derive(1000, 2.0, None)
    assert timeout.seconds == 1000 / 2.0 * 1.5 + 60
    assert timeout.arithmetic() == "1000 tokens / 2 tokens/s x 1.5 + 60 s = 810 s"


def test_a_longer_wish_is_granted() -> None:
    assert derive(1000, 2.0, 5000.0).seconds == 5000.0
    assert derive(1000, 2.0, needed(1000, 2.0)).seconds == 810.0


def test_a_shorter_wish_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(ConfigError) as caught:
        derive(1024, 3.6, 180.0)
    message = str(caught.value)
    assert message.startswith("timeout_s = 180 would kill requests that are still running: ")
    assert "1024 tokens / 3.6 tokens/s x 1.5 + 60 s = 487 s" in message
    assert "min_tokens_per_s" in message


def test_the_default_speed_is_below_every_published_one() -> None:
    assert DEFAULT_MIN_TOKENS_PER_S < 2.13


@pytest.mark.parametrize("tokens", [1, 100, 1024, 100_000])
@pytest.mark.parametrize("speed", [0.5, 2.0, 3.6])
def test_the_largest_budget_of_a_timeout_fits_it_and_one_more_does_not(
    tokens: int, speed: float
) -> None:
    wanted = needed(tokens, speed)
    assert largest(speed, wanted) == tokens
    assert derive(tokens, speed, wanted)
    with pytest.raises(ConfigError):
        derive(tokens + 1, speed, wanted)


def test_no_timeout_bounds_no_budget_and_a_tiny_one_allows_none() -> None:
    assert largest(2.0, None) is None
    assert largest(2.0, 30.0) == 0


class Params:
    max_tokens = 1024


def test_a_job_that_would_be_killed_is_refused_at_the_start() -> None:
    good = Endpoint(name="good", url="http://a")
    short = Endpoint(name="short", url="http://b", timeout_s=180, min_tokens_per_s=3.6)
    check_timeouts([good], Params())
    check_timeouts([good, short], object())  # a kind that does not say what it takes
    with pytest.raises(ConfigError, match=r"endpoint short: timeout_s = 180 .* = 487 s"):
        check_timeouts([good, short], Params())
