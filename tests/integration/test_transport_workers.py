"""Workers over the batched transport: nothing is lost, and nothing runs twice that need not."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.poolkit import Project, Worker, opened, wait_for
from tests.integration.servers import (
    Restartable,
    binaries,
    restartable_server,
    running_server,
)

OURS = "fanout_workers.transport:Transport"
STOCK = "redis"
#: Seconds after which a silent worker loses what it has.
VISIBILITY_S = 1.5


@pytest.fixture(params=sorted(binaries()))
def server(request: pytest.FixtureRequest) -> Iterator[Restartable]:
    with restartable_server(request.param) as server:
        yield server


@pytest.fixture
def project(server: Restartable) -> Iterator[Project]:
    with opened(server.url) as project:
        yield project


@pytest.fixture
def one_project() -> Iterator[Project]:
    """On one kind of server, where the kind makes no difference."""
    with running_server("valkey") as url, opened(url) as project:
        yield project


def started(project: Project) -> Counter[str]:
    """How often each task has begun."""
    return Counter(note["id"] for note in project.notes() if note["what"] == "start")


def worker_of(project: Project, folder: Path, slots: int, **settings: Any) -> Worker:
    folder.mkdir(exist_ok=True)
    settings = {"transport": OURS, "visibility": str(VISIBILITY_S)} | settings
    return Worker(project.url, folder, concurrency=slots, **settings)


def cut_connections(project: Project) -> None:
    for kind in ("normal", "pubsub"):
        project.redis.client_kill_filter(_type=kind, skipme=True)


def cut_consuming_connections(project: Project) -> None:
    for client in project.redis.client_list():
        if "t" in client["flags"] or client["psub"] != "0":  # tracks keys, or is subscribed
            project.redis.client_kill_filter(_id=client["id"])


@pytest.mark.parametrize(("sender", "worker"), [(STOCK, OURS), (OURS, STOCK)])
def test_plain_celery_reads_what_it_writes_and_the_other_way_round(
    one_project: Project, tmp_path: Path, sender: str, worker: str
) -> None:
    one_project.app.conf.broker_transport = sender
    with worker_of(one_project, tmp_path, 2, transport=worker).wait_ready():
        assert one_project.get("add", 40, 2) == 42
        with pytest.raises(Exception, match="bad"):
            one_project.get("fail", "value")
        one_project.wait_all_acked()


def test_a_plain_worker_beside_it(one_project: Project, tmp_path: Path) -> None:
    results = [one_project.send("sleep", 0.2) for _ in range(40)]
    with (
        worker_of(one_project, tmp_path / "ours", 2) as ours,
        worker_of(one_project, tmp_path / "stock", 2, transport=STOCK, visibility="3600") as stock,
    ):
        for result in results:
            one_project.wait_noted("success", result.id)
        one_project.wait_all_acked()
        assert set(started(one_project).values()) == {1}
        assert all("succeeded" in worker.output for worker in (ours, stock))


def test_inspection_and_the_prefetch_count(one_project: Project, tmp_path: Path) -> None:
    with worker_of(one_project, tmp_path, 2, prefetch="3").wait_ready():
        for _ in range(10):
            one_project.send("sleep", 600)
        one_project.wait_noted("start", times=2)
        wait_for(lambda: one_project.unacked() == 6, "the prefetch")
        inspect = one_project.app.control.inspect(timeout=5, limit=1)
        (active,) = inspect.active().values()
        (reserved,) = inspect.reserved().values()
        assert (len(active), len(reserved)) == (2, 4)
        assert one_project.queued() == 4


def test_cut_connections_lose_nothing_and_run_nothing_twice(
    project: Project, tmp_path: Path
) -> None:
    with worker_of(project, tmp_path, 20, prefetch="2") as worker:
        results = [project.send("sleep", 1) for _ in range(60)]
        project.wait_noted("start", times=20)
        wait_for(lambda: project.unacked() == 40, "the prefetch")
        cut_connections(project)
        for result in results:
            project.wait_noted("success", result.id)
        project.wait_all_acked()
        assert "Connection to broker lost" in worker.output
    assert set(started(project).values()) == {1}


def test_a_warm_shutdown_after_a_lost_connection_gives_back_nothing_that_runs(
    one_project: Project, tmp_path: Path
) -> None:
    results = [one_project.send("sleep", 1.5) for _ in range(8)]
    with worker_of(one_project, tmp_path, 2, prefetch="2") as worker:
        one_project.wait_noted("start", times=2)
        cut_consuming_connections(one_project)
        wait_for(lambda: worker.output.count("Connected to") == 2, "the new connection")
        worker.signal(signal.SIGTERM)
        assert worker.wait_ended() == 0
    assert one_project.noted().count("success") == len(started(one_project)) == 2
    assert one_project.unacked() == 0
    assert one_project.queued() == len(results) - 2


def test_a_restarted_server_loses_nothing_and_runs_nothing_twice(
    server: Restartable, project: Project, tmp_path: Path
) -> None:
    with worker_of(project, tmp_path, 20) as worker:
        results = [project.send("sleep", 1.5) for _ in range(40)]
        project.wait_noted("start", times=20)
        server.stop()
        wait_for(lambda: "Connection to broker lost" in worker.output, "the loss to be seen")
        server.start()
        for result in results:
            project.wait_noted("success", result.id)
        project.wait_all_acked()
    assert set(started(project).values()) == {1}


def test_what_takes_or_waits_longer_than_the_visibility_timeout_runs_once(
    one_project: Project, tmp_path: Path
) -> None:
    with (
        worker_of(one_project, tmp_path / "1", 1),
        worker_of(one_project, tmp_path / "2", 1),
    ):
        results = [
            one_project.send("sleep", 3 * VISIBILITY_S),
            one_project.send("sleep", 0, countdown=2.5 * VISIBILITY_S),
        ]
        for result in results:
            one_project.wait_noted("success", result.id)
        one_project.wait_all_acked()
    assert set(started(one_project).values()) == {1}


def test_a_stopped_process_keeps_what_nobody_has_taken(
    one_project: Project, tmp_path: Path
) -> None:
    with worker_of(one_project, tmp_path, 1) as worker:
        result = one_project.send("sleep", 2 * VISIBILITY_S)
        one_project.wait_noted("start")
        ((_, before),) = one_project.redis.zrange("unacked_index", 0, -1, withscores=True)
        worker.signal(signal.SIGSTOP)
        wait_for(lambda: server_time(one_project) > before + 2 * VISIBILITY_S, "the timeout")
        worker.signal(signal.SIGCONT)
        one_project.wait_noted("success", result.id)
        one_project.wait_all_acked()
    assert started(one_project)[result.id] == 1


def server_time(project: Project) -> float:
    seconds, microseconds = project.redis.time()
    return float(seconds + microseconds / 1e6)


def test_what_a_killed_worker_had_comes_back_to_another(
    one_project: Project, tmp_path: Path
) -> None:
    results = [one_project.send("sleep", 0.5) for _ in range(8)]
    with worker_of(one_project, tmp_path / "killed", 4, prefetch="2") as killed:
        one_project.wait_noted("start", times=4)
        with worker_of(one_project, tmp_path / "other", 4):
            killed.signal(signal.SIGKILL)
            for result in results:
                one_project.wait_noted("success", result.id)
            one_project.wait_all_acked()


def test_kills_under_load_lose_nothing(project: Project, tmp_path: Path) -> None:
    sent: set[str] = set()
    for number in range(3):
        sent |= {project.send("requeue_once").id for _ in range(300)}
        done = len(started(project))
        with worker_of(project, tmp_path / str(number), 32) as worker:
            wait_for(lambda: len(started(project)) > done + 40, "some work")  # noqa: B023
            worker.signal(signal.SIGKILL)
    with worker_of(project, tmp_path / "last", 32):
        wait_for(
            lambda: {note["id"] for note in project.notes() if note["what"] == "success"} == sent,
            "all tasks",
        )
        project.wait_all_acked()


@pytest.mark.parametrize("pool", ["threads", "solo", "prefork"])
def test_other_pools(one_project: Project, tmp_path: Path, pool: str) -> None:
    results = [one_project.send("block", 0.2) for _ in range(8)]
    with worker_of(one_project, tmp_path, 2, pool=pool, prefetch="2") as worker:
        one_project.wait_noted("unblocked", times=1)
        if pool == "threads":
            # Only these: the tasks have connections of their own, which nothing mends.
            cut_consuming_connections(one_project)
        for result in results:
            one_project.wait_noted("success", result.id)
        one_project.wait_all_acked()
        assert one_project.noted().count("blocking") == len(results)
        assert worker.alive


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_warm_shutdown_of_other_pools(one_project: Project, tmp_path: Path, pool: str) -> None:
    results = [one_project.send("block", 0.2) for _ in range(8)]
    with worker_of(one_project, tmp_path, 2, pool=pool, prefetch="2") as worker:
        one_project.wait_noted("unblocked", times=2)
        worker.signal(signal.SIGTERM)
        assert worker.wait_ended() == 0
    blocked = one_project.noted().count("blocking")
    assert one_project.noted().count("unblocked") == blocked
    assert one_project.unacked() == 0
    assert one_project.queued() == len(results) - blocked
