"""Wall clocks that jump, or that differ between client and worker."""

from __future__ import annotations

import time

import pytest

from fanout_workers import item as item_module
from tests.unit.test_item import Bench

pytestmark = pytest.mark.anyio


class Jumping:
    """A wall clock that goes an hour back, or on, at each look; the other clock is true."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self, step_s: float) -> None:
        self._now = time.time()
        self._step_s = step_s

    def time(self) -> float:
        self._now += self._step_s
        return self._now


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
async def test_only_the_wait_in_the_queue_is_told_wrongly(
    monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    bench = Bench()
    item = await bench.submit("one")
    monkeypatch.setattr(item_module, "time", Jumping(step_s))
    record = await bench.run(item)
    assert record.status == "ok"
    assert record.timing.queued_s is not None
    assert record.timing.queued_s >= 0
    assert record.timing.total_s is not None
    assert record.timing.total_s < 60
