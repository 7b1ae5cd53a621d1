"""Workers while Redis is full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.integration.fleet import Fleet, fleet, wait_for
from tests.integration.servers import running_server


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Fleet]:
    with running_server("valkey") as url, fleet(url, tmp_path) as made:
        yield made


def test_what_is_queued_ends_while_redis_is_full(one: Fleet) -> None:
    one.model.delay_s = 0.3
    worker = one.worker()
    one.send([f"good {number}" for number in range(80)])
    one.redis.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        one.redis.set("key", "value")
    # Each end frees more than it takes: else nothing would ever get room.
    wait_for(one.idle, "all to end", worker)
    (records,) = one.redis.keys("fanout:job:*:records")
    assert one.redis.xlen(records) == 80
    assert set(one.model.asked.values()) == {1}
    assert worker.exits == []
