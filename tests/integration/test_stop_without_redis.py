"""A worker that is told to stop while Redis is away stops, and what it had is done later."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.fleet import fleet, wait_for
from tests.integration.servers import restartable_server

#: Seconds for the end, on a busy machine; without `fanout_workers.parting` it takes minutes.
SOON_S = 40.0


@pytest.mark.parametrize("delay_s", [600.0, 0.5], ids=["in flight", "to be settled"])
def test_it_ends_soon_and_loses_nothing(tmp_path: Path, delay_s: float) -> None:
    texts = [f"good {number}" for number in range(60)]
    with restartable_server("valkey") as server, fleet(server.url, tmp_path) as few:
        few.model.delay_s = delay_s
        worker = few.worker()

        def away() -> None:
            wait_for(lambda: len(few.model.asked) >= 16, "requests in flight", worker)
            server.kill()
            assert worker.stop(SOON_S) == 0
            few.model.delay_s = 0.0
            server.start()
            few.worker()

        records = few.run(texts, away)
    assert sorted(record.data for record in records) == sorted(texts)
    assert {record.status for record in records} == {"ok"}
