"""A lost connection to the broker: what waits is forgotten, what runs goes on, nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.poolkit import Project, Worker, opened, wait_for
from tests.integration.servers import running_server


@pytest.fixture
def project() -> Iterator[Project]:
    with running_server("valkey") as url, opened(url) as project:
        yield project


def test_the_worker_goes_on_after_a_lost_connection(project: Project, tmp_path: Path) -> None:
    with Worker(project.url, tmp_path, concurrency=2, prefetch="10") as worker:
        worker.wait_ready()
        results = [project.send("sleep", 1) for _ in range(8)]
        project.wait_noted("start", times=2)
        wait_for(lambda: project.unacked() == 8, "the prefetch")
        running = {note["id"] for note in project.notes() if note["what"] == "start"}

        with opened(project.url) as other:
            other.redis.client_kill_filter(_type="normal", skipme=True)

        for result in results:
            project.wait_noted("success", result.id)
        project.wait_all_acked()
        assert "Connection to broker lost" in worker.output
        # Celery's Redis transport gives back what runs, too; what only waited runs once.
        for result in results:
            starts = project.noted(result.id).count("start")
            assert starts in ((1, 2) if result.id in running else (1,))
        assert project.get("add", 40, 2) == 42


def test_a_connection_lost_during_a_warm_shutdown_does_not_hold_it_up(
    project: Project, tmp_path: Path
) -> None:
    result = project.send("sleep", 1)
    with Worker(project.url, tmp_path, concurrency=2) as worker:
        project.wait_noted("start")
        worker.signal(signal.SIGTERM)
        wait_for(lambda: "Warm shutdown" in worker.output, "the warm shutdown")
        with opened(project.url) as other:
            other.redis.client_kill_filter(_type="normal", skipme=True)
            other.redis.client_kill_filter(_type="pubsub", skipme=True)
        assert worker.wait_ended() == 0
    assert "success" in project.noted(result.id)
    assert "session closed" in project.noted()
