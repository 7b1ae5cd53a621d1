"""What Celery promises about a task holds on the asyncio pool: one worker, many tasks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import chain, chord, group
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from tests.integration.poolkit import Project, Worker, opened, wait_for
from tests.integration.servers import running_server

SLOTS = 1000


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Worker]]:
    folder = tmp_path_factory.mktemp("worker")
    with (
        running_server("valkey") as url,
        opened(url) as project,
        Worker(url, folder, concurrency=SLOTS) as worker,
    ):
        yield project, worker.wait_ready()


@pytest.fixture
def project(worker: tuple[Project, Worker]) -> Iterator[Project]:
    project, process = worker
    yield project
    # Whatever the test did, the worker lives, owes no acknowledgement and takes tasks.
    assert process.alive, process.output
    project.wait_all_acked()
    assert project.get("add", 40, 2) == 42


class TestFunctions:
    @pytest.mark.parametrize("name", ["add", "add_sync", "add_disguised"])
    def test_gives_its_result(self, project: Project, name: str) -> None:
        assert project.get(name, 1, 2) == 3

    def test_wrong_arguments_fail(self, project: Project) -> None:
        with pytest.raises(TypeError):
            project.get("add", 1)

    def test_a_function_may_wait_for_a_coroutine(self, project: Project) -> None:
        assert project.get("through_the_loop", 21) == 42

    def test_functions_run_in_threads_of_their_own(self, project: Project) -> None:
        results = [project.send("block", 0.05) for _ in range(3)]
        assert {result.get() for result in results} == {"AsyncPool-sync"}

    def test_a_task_class_may_run_its_task_twice(self, project: Project) -> None:
        result = project.send("twice")
        assert result.get() == result.id
        project.wait_noted("postrun", result.id)
        assert project.noted(result.id).count("start") == 2
        assert {"what": "on_success", "id": result.id, "request": result.id} in project.notes(
            result.id
        )


class TestRequests:
    def test_a_thousand_interleaved_tasks_know_who_they_are(self, project: Project) -> None:
        results = [project.send("who_am_i") for _ in range(SLOTS)]
        seen = {result.id: result.get() for result in results}
        assert {task_id: set(ids) for task_id, ids in seen.items()} == {
            task_id: {task_id} for task_id in seen
        }

    def test_what_prerun_sets_reaches_the_task_and_postrun(self, project: Project) -> None:
        result = project.send("what_is_set")
        assert result.get() == result.id
        project.wait_noted("postrun", result.id)
        (postrun,) = [note for note in project.notes(result.id) if note["what"] == "postrun"]
        assert postrun["baggage"] == postrun["request"] == result.id

    def test_the_request_is_there_while_a_cancelled_task_cleans_up(self, project: Project) -> None:
        result = project.send("sleep", 60, time_limit=0.1)
        project.wait_noted("postrun", result.id)
        assert project.noted(result.id) == ["prerun", "start", "failure", "cancelled", "postrun"]


class TestRetries:
    @pytest.mark.parametrize("name", ["retried", "autoretried"])
    def test_retries_until_it_succeeds(self, project: Project, name: str) -> None:
        result = project.send(name, 2)
        assert result.get() == 2
        project.wait_noted("success", result.id)
        assert project.noted(result.id).count("retry") == 2

    @pytest.mark.parametrize("name", ["retried", "autoretried"])
    def test_gives_up_after_the_last_retry(self, project: Project, name: str) -> None:
        result = project.send(name, 100)
        with pytest.raises(Exception, match=r"Can't retry|ConnectionError|^$"):
            result.get()
        assert project.noted(result.id).count("retry") == 3


class TestCanvas:
    def test_link_runs_with_the_result(self, project: Project) -> None:
        after = project.sig("add", 10).set(task_id="linked")
        project.send("add", 1, 2, link=after)
        assert project.sent("linked").get() == 13

    def test_link_error_runs_after_a_failure(self, project: Project) -> None:
        handlers = [project.sig("after_failure_by_id"), project.sig("after_failure")]
        result = project.send("fail", "value", link_error=handlers)
        project.wait_noted("errback by id", result.id)
        assert {"what": "errback", "id": result.id, "error": "ValueError"} in project.notes()

    def test_chain(self, project: Project) -> None:
        steps = chain(project.sig("add", 1, 1), project.sig("add", 2), project.sig("add_sync", 3))
        assert project.sent(steps.apply_async().id).get() == 7

    @pytest.mark.parametrize("body", ["total", "total_async"])
    def test_chord(self, project: Project, body: str) -> None:
        header = [project.sig("add", i, i) for i in range(20)]
        result = chord(header, project.sig(body), app=project.app).apply_async()
        assert project.sent(result.id).get() == 380

    def test_chord_of_result_stores_without_a_counter(self, project: Project) -> None:
        header = group([project.sig("add", i, i) for i in range(5)], app=project.app).apply_async()
        body = project.sig("total_async").set(task_id="unlocked")
        project.app.backend.fallback_chord_unlock(header, body, countdown=0)
        assert project.sent("unlocked").get() == 20


class TestResults:
    def test_an_ignored_result_is_not_stored(self, project: Project) -> None:
        result = project.send("unkept")
        project.wait_noted("postrun", result.id)
        assert project.redis.keys(f"*{result.id}*") == []

    def test_signals_come_in_order_and_know_the_task(self, project: Project) -> None:
        result = project.send("add", 1, 1)
        project.wait_noted("postrun", result.id)
        notes = project.notes(result.id)
        assert [note["what"] for note in notes] == ["prerun", "success", "postrun"]
        assert notes[0]["request"] == notes[2]["request"] == result.id
        assert notes[2]["state"] == "SUCCESS"

    def test_signals_of_a_failure(self, project: Project) -> None:
        result = project.send("fail", "value")
        project.wait_noted("postrun", result.id)
        assert project.noted(result.id) == ["prerun", "failure", "postrun"]

    def test_events_come_in_order_with_the_true_runtime(self, project: Project) -> None:
        events = project.watch("sleep", 0.3, until="task-succeeded")
        assert list(events) == ["task-received", "task-started", "task-succeeded"]
        runtime = events["task-succeeded"]["runtime"]
        started, succeeded = (
            events[kind]["timestamp"] for kind in ("task-started", "task-succeeded")
        )
        assert 0.3 <= runtime <= succeeded - started


class TestAcknowledgement:
    def test_late(self, project: Project) -> None:
        result = project.send("sleep", 0.3)
        project.wait_noted("start", result.id)
        assert project.unacked() == 1
        assert result.get() == result.id

    def test_early(self, project: Project) -> None:
        result = project.send("sleep_acked_early", 1)
        project.wait_noted("start", result.id)
        wait_for(lambda: project.unacked() == 0, "the acknowledgement")
        assert result.state == "PENDING"

    @pytest.mark.parametrize(
        ("kind", "state"),
        [
            ("value", "FAILURE"),
            ("memory", "FAILURE"),
            ("group", "FAILURE"),
            ("exit", "FAILURE"),
            ("interrupt", "FAILURE"),
            ("generator exit", "FAILURE"),
            ("reject", "FAILURE"),
            ("cancelled", "REVOKED"),
            ("ignore", "PENDING"),
        ],
    )
    def test_whatever_it_raises(self, project: Project, kind: str, state: str) -> None:
        result = project.send("fail", kind)
        project.wait_noted("postrun", result.id)
        wait_for(lambda: result.state == state, f"the state {state}")
        project.wait_all_acked()

    def test_reject_and_requeue(self, project: Project) -> None:
        result = project.send("requeue_once")
        assert result.get() is True
        assert project.noted(result.id).count("start") == 2

    def test_a_task_left_behind_cannot_end_the_loop(
        self, project: Project, worker: tuple[Project, Worker]
    ) -> None:
        project.get("leave_a_bomb")
        wait_for(
            lambda: "A background task tried to end the process" in worker[1].output, "the log"
        )


class TestTimeLimits:
    def test_soft_limit_is_raised_in_the_coroutine(self, project: Project) -> None:
        result = project.send("soft_caught")
        assert result.get() == "partial after 0.2 s"
        assert "child cancelled" in project.noted(result.id)

    def test_soft_limit_that_is_not_caught(self, project: Project) -> None:
        with pytest.raises(SoftTimeLimitExceeded):
            project.get("soft_uncaught")

    def test_soft_limit_of_one_message(self, project: Project) -> None:
        with pytest.raises(SoftTimeLimitExceeded):
            project.get("sleep", 60, soft_time_limit=0.1)

    def test_a_task_within_its_limits(self, project: Project) -> None:
        result = project.send("sleep", 0.1, soft_time_limit=30, time_limit=60)
        assert result.get() == result.id

    @pytest.mark.parametrize("name", ["sleep", "stubborn", "block"])
    def test_hard_limit(self, project: Project, name: str) -> None:
        result = project.send(name, 1, time_limit=0.1)
        with pytest.raises(TimeLimitExceeded):
            result.get()
        project.wait_all_acked()
        project.wait_noted("postrun", result.id)
        assert result.state == "FAILURE"

    def test_functions_that_hang_do_not_use_up_the_threads(self, project: Project) -> None:
        hung = [project.send("block", 2, time_limit=0.1) for _ in range(12)]
        assert project.get("add_sync", 1, 2) == 3
        for result in hung:
            with pytest.raises(TimeLimitExceeded):
                result.get()


class TestRevocation:
    def test_a_running_task_is_cancelled(self, project: Project) -> None:
        result = project.send("sleep", 60)
        project.wait_noted("start", result.id)
        result.revoke()
        project.wait_noted("postrun", result.id)
        assert project.noted(result.id) == ["prerun", "start", "revoked", "cancelled", "postrun"]
        assert result.state == "REVOKED"

    @pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
    def test_a_stubborn_task_gives_its_place_up(self, project: Project, number: str) -> None:
        result = project.send("stubborn", 1)
        project.wait_noted("start", result.id)
        result.revoke(signal=number)
        project.wait_all_acked()
        assert result.state == "REVOKED"
        project.wait_noted("postrun", result.id)

    def test_inspection_shows_the_pool(self, project: Project) -> None:
        result = project.send("sleep", 0.5)
        project.wait_noted("start", result.id)
        ((_, stats),) = project.app.control.inspect(timeout=5, limit=1).stats().items()
        assert stats["pool"]["implementation"] == "fanout_workers.pool.pool:AsyncPool"
        assert stats["pool"]["max-concurrency"] == SLOTS
        assert stats["pool"]["running"] >= 1
        result.get()
