"""Items that end their workers, workers that end without a word, and everybody else's items."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fleet import Fleet, fleet, wait_for
from tests.integration.servers import running_server


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Fleet]:
    with running_server("valkey") as url, fleet(url, tmp_path) as made:
        yield made


def test_an_item_that_ends_its_worker_is_poison_and_no_other(many: Fleet) -> None:
    many.model.delay_s = 0.3
    worker = many.worker()
    texts = ["DIE now" if number == 20 else f"good {number}" for number in range(60)]
    records = many.run(texts)
    ends = {int(record.id): record for record in records}
    assert len(records) == len(ends) == len(texts)
    bad = ends.pop(20)
    assert bad.status == "failed"
    assert bad.error is not None
    assert bad.error.kind == "poison"
    assert {record.status for record in ends.values()} == {"ok"}
    # Two workers, and then only processes of those that had been in both.
    assert len(worker.exits) == 2
    assert worker.output.count("a quarantine with") == 2
    wait_for(many.idle, "the acknowledgements", worker)
