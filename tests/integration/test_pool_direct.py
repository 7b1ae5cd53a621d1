"""Tasks that run without Celery's tracer end as they do with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.poolkit import Project, Sent, Worker, opened, wait_for
from tests.integration.servers import running_server


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Worker]]:
    folder = tmp_path_factory.mktemp("worker")
    with (
        running_server("valkey") as url,
        opened(url) as project,
        Worker(url, folder, concurrency=4, unheard="1") as worker,
    ):
        yield project, worker.wait_ready()


@pytest.fixture
def project(worker: tuple[Project, Worker]) -> Iterator[Project]:
    project, process = worker
    yield project
    assert process.alive, process.output
    project.wait_all_acked()
    assert project.get("add", 40, 2) == 42


def sent(project: Project, how: str, **options: Any) -> Sent:
    return project.send("either_way", kwargs={"how": how}, **{"ignore_result": True, **options})


def test_what_nobody_listens_to_needs_no_tracer(project: Project) -> None:
    for task in [sent(project, "well") for _ in range(10)]:
        project.wait_noted("directly", task.id)
        assert project.noted(task.id) == ["directly"]


def test_a_rejected_task_comes_back(project: Project) -> None:
    task = sent(project, "requeue once")
    project.wait_noted("directly", task.id, times=2)
    project.wait_all_acked()
    assert project.noted(task.id) == ["directly", "directly"]


@pytest.mark.parametrize("how", ["value", "exit", "memory"])
def test_what_fails_is_told_by_the_tracer_and_runs_once(project: Project, how: str) -> None:
    task = sent(project, how)
    project.wait_noted("failure", task.id)
    assert project.noted(task.id) == ["directly", "failure"]


def test_a_task_that_cancels_itself_is_revoked(project: Project) -> None:
    task = sent(project, "cancelled")
    project.wait_noted("revoked", task.id)
    assert project.noted(task.id) == ["directly", "revoked"]


def test_a_revoked_task_ends(project: Project) -> None:
    task = sent(project, "for ever")
    project.wait_noted("directly", task.id)
    task.revoke()
    project.wait_noted("revoked", task.id)


def test_a_time_limit_ends_it(project: Project) -> None:
    task = sent(project, "for ever", time_limit=0.1)
    project.wait_noted("failure", task.id)
    soft = sent(project, "for ever", soft_time_limit=0.1)
    project.wait_noted("failure", soft.id)
    (failure,) = (note for note in project.notes(soft.id) if note["what"] == "failure")
    assert failure["error"] == "SoftTimeLimitExceeded"


@pytest.mark.parametrize("how", ["result", "link", "chain", "position"])
def test_what_asks_for_more_gets_the_tracer(project: Project, how: str) -> None:
    if how == "result":
        task = sent(project, "well", ignore_result=False)
        wait_for(lambda: task.state == "SUCCESS", "the result")
    elif how == "link":
        task = sent(project, "well", link=project.sig("unkept").set(immutable=True))
    elif how == "chain":
        task = sent(project, "well", chain=[project.sig("unkept").set(immutable=True)])
    else:
        task = project.send("either_way", "well", ignore_result=True)
    project.wait_noted("by the tracer", task.id)
    assert project.noted(task.id) == ["by the tracer"]
