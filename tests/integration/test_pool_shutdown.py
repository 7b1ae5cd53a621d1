"""How a worker with the asyncio pool starts and ends: nothing is lost, nothing hangs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.poolkit import Project, Worker, opened, wait_for
from tests.integration.servers import running_server


def split(noted: list[str], what: str) -> tuple[list[str], list[str]]:
    """What comes before and after `what`."""
    at = noted.index(what)
    return noted[:at], noted[at + 1 :]


@pytest.fixture(params=["redis", "fanout_workers.transport:Transport"], ids=["kombu", "batched"])
def project(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Over kombu's transport and over the batched one."""
    monkeypatch.setenv("POOL_APP_TRANSPORT", request.param)
    with running_server("valkey") as url, opened(url) as project:
        yield project


def test_hooks_run_on_the_loop_before_the_first_task_and_after_the_last(
    project: Project, tmp_path: Path
) -> None:
    result = project.send("add", 1, 2)
    with Worker(project.url, tmp_path, concurrency=2) as worker:
        assert result.get() == 3
        project.wait_noted("postrun")
        worker.signal(signal.SIGTERM)
        assert worker.wait_ended() == 0
    noted = project.noted()
    assert noted[0] == "session opened"
    assert noted[-2:] == ["failing to stop", "session closed"]
    assert project.notes()[-1]["same_loop"] is True
    assert "fail_to_stop" in worker.output


def test_a_failing_start_hook_stops_the_worker_with_its_error(
    project: Project, tmp_path: Path
) -> None:
    project.send("add", 1, 2)
    with Worker(project.url, tmp_path, concurrency=2, fail_start="1") as worker:
        assert worker.wait_ended() != 0
        assert "OSError: the model server is not there" in worker.output
    assert project.noted() == ["session opened", "failing to stop", "session closed"]
    assert project.queued() == 1


def test_warm_shutdown_ends_what_runs_and_gives_back_the_rest(
    project: Project, tmp_path: Path
) -> None:
    results = [project.send("sleep", 0.7) for _ in range(8)]
    with Worker(project.url, tmp_path, concurrency=2, prefetch="2") as worker:
        project.wait_noted("start", times=2)
        worker.signal(signal.SIGTERM)
        assert worker.wait_ended() == 0
    noted = project.noted()
    started, ended = noted.count("start"), noted.count("end")
    assert started == ended  # none was cut off
    assert noted.count("success") == ended
    assert 2 <= ended < len(results)
    assert project.unacked() == 0
    assert project.queued() == len(results) - ended
    assert "end" not in split(noted, "failing to stop")[1]


@pytest.mark.parametrize("name", ["sleep", "stubborn", "block"])
def test_cold_shutdown_gives_back_what_runs(project: Project, tmp_path: Path, name: str) -> None:
    for _ in range(3):
        project.send(name, 600)
    with Worker(project.url, tmp_path, concurrency=2, prefetch="2") as worker:
        project.wait_noted("blocking" if name == "block" else "start", times=2)
        worker.signal(signal.SIGQUIT)
        worker.wait_ended()
    assert project.unacked() == 0
    assert project.queued() == 3
    before, after = split(project.noted(), "session closed")
    assert before.count("cancelled") == (2 if name == "sleep" else 0)
    assert set(after) <= {"postrun"}


def test_a_second_signal_turns_a_warm_shutdown_cold(project: Project, tmp_path: Path) -> None:
    project.send("sleep", 600)
    with Worker(project.url, tmp_path, concurrency=2) as worker:
        project.wait_noted("start")
        worker.signal(signal.SIGTERM)
        wait_for(lambda: "Warm shutdown" in worker.output, "the warm shutdown")
        worker.signal(signal.SIGQUIT)
        worker.wait_ended()
    assert project.noted().count("cancelled") == 1
    assert project.unacked() == 0
    assert project.queued() == 1


def test_what_ends_during_a_soft_shutdown_is_kept(project: Project, tmp_path: Path) -> None:
    short, long = project.send("sleep", 0.8), project.send("sleep", 600)
    with Worker(project.url, tmp_path, concurrency=2, soft_shutdown="1.5") as worker:
        project.wait_noted("start", times=2)
        worker.signal(signal.SIGQUIT)
        worker.wait_ended()
    assert short.get() == short.id
    assert project.noted(long.id).count("cancelled") == 1
    assert project.unacked() == 0
    assert project.queued() == 1
