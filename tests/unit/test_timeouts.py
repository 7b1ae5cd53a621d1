"""The derived timeout."""

from __future__ import annotations

import pytest

from fanout.errors import ConfigError
from fanout.timeouts import DEFAULT_MIN_TOKENS_PER_S, derive, needed


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
