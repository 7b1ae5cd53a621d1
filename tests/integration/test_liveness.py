"""Workers that live and do nothing end themselves, and are started again; others do not."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fleet import Fleet, fleet, wait_for
from tests.integration.servers import running_server

STUCK_S = 3.0


@pytest.fixture
def few(tmp_path: Path) -> Iterator[Fleet]:
    with running_server("valkey") as url, fleet(url, tmp_path, stuck_after_s=STUCK_S) as made:
        yield made


@pytest.mark.parametrize(("how", "status"), [("HANG", 75), ("GRAB", -signal.SIGPROF), ("JAM", 75)])
def test_a_worker_that_is_blocked_ends_itself(few: Fleet, how: str, status: int) -> None:
    """By an item that lets other threads run, or by one that does not."""
    worker = few.worker()
    few.send([f"{how} now", *(f"good {number}" for number in range(5))])
    wait_for(lambda: worker.exits, "the end of the worker", worker)
    assert worker.exits == [status]


def test_a_worker_to_which_nothing_is_delivered_ends_in_order(few: Fleet) -> None:
    few.model.delay_s = 0.2
    worker = few.worker()
    texts = ["DEAF from here", *(f"good {number}" for number in range(100))]
    records = few.run(texts)
    assert [record.status for record in records] == ["ok"] * len(texts)
    assert worker.exits == [75]
    assert "messages wait, and none is delivered" in worker.output
    # What ran came to its end, and what had not begun went back: nothing was asked for twice.
    assert set(few.model.asked.values()) == {1}


def test_a_worker_goes_on_that_was_suspended_and_not_with_a_stuck_main_thread(few: Fleet) -> None:
    worker = few.worker()

    def suspend() -> None:
        worker.kill(signal.SIGSTOP)
        time.sleep(1.3 * STUCK_S)  # that it is longer is the point
        worker.kill(signal.SIGCONT)

    few.model.delay_s = 0.1
    records = few.run([f"good {number}" for number in range(60)], suspend)
    assert {record.status for record in records} == {"ok"}
    # It may be stuck only when it has had the time to look a dozen times.
    wait_for(few.idle, "the acknowledgements", worker)
    assert worker.exits == []
    few.send(["JAM"])
    wait_for(lambda: worker.exits, "the end of the worker", worker)
    assert worker.exits == [75]
    assert "Celery's hub does not go round" in worker.output
