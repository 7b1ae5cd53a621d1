"""Starts the project `pool_app` in a real Celery worker over a real Valkey, and watches it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import redis
from celery import Celery
from celery.backends.redis import RedisBackend
from celery.states import READY_STATES

DEADLINE_S = 30.0
QUEUE = "celery"

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str) -> T:
    """The first true value of `condition`; fails the test with `what` after DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.01)
    return value


class PolledBackend(RedisBackend):  # type: ignore[misc]
    """A result store that subscribes to nothing.

    Celery's subscribes for each task, and its results unsubscribe when they are collected as
    garbage, which may be after the server's end.
    """

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing."""

    def remove_pending_result(self, result: Any) -> Any:
        """Nothing."""
        return result


class Sent:
    """The result of a task, to be polled."""

    def __init__(self, app: Celery, task_id: str) -> None:
        self.id = task_id
        self._app = app

    @property
    def state(self) -> str:
        """Celery's state."""
        return str(self._app.backend.get_task_meta(self.id)["status"])

    def get(self) -> Any:
        """Wait for the task's value; raises its error."""
        wait_for(lambda: self.state in READY_STATES, f"the result of {self.id}")
        value = self._app.backend.get_task_meta(self.id)["result"]
        if isinstance(value, BaseException):
            raise value
        return value

    def revoke(self, signal: str = "SIGTERM") -> None:
        """End the task."""
        self._app.control.revoke(self.id, terminate=True, signal=signal)


class Project:
    """The client's side: publishes to the server at `url` and reads what the worker noted."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis = redis.Redis.from_url(url)
        backend = f"{__name__}:PolledBackend+{url}"
        self.app = Celery("pool_app", broker=url, backend=backend, set_as_current=False)

    def close(self) -> None:
        """Close all connections."""
        self.app.close()
        self.app.backend.client.close()
        self.redis.close()

    def send(self, name: str, *args: Any, **options: Any) -> Sent:
        """Publish a task."""
        name = f"tests.integration.pool_app.tasks.{name}"
        return self.sent(self.app.send_task(name, args, **options).id)

    def sent(self, task_id: str) -> Sent:
        """The result of a task that was published otherwise."""
        return Sent(self.app, task_id)

    def sig(self, name: str, *args: Any, **options: Any) -> Any:
        """A signature of a task."""
        return self.app.signature(f"tests.integration.pool_app.tasks.{name}", args, **options)

    def get(self, name: str, *args: Any, **options: Any) -> Any:
        """Publish a task and wait for its value."""
        return self.send(name, *args, **options).get()

    def watch(self, name: str, *args: Any, until: str) -> dict[str, dict[str, Any]]:
        """Publish a task and collect its events by type, in their order, up to `until`."""
        events: dict[str, dict[str, Any]] = {}
        task: list[Sent] = []

        def receive(event: dict[str, Any]) -> None:
            if not task:  # any event says that we are subscribed
                task.append(self.send(name, *args))
            elif event.get("uuid") == task[0].id:
                events[event["type"]] = event
                receiver.should_stop = event["type"] == until

        with self.app.connection_for_read() as connection:
            receiver = self.app.events.Receiver(connection, handlers={"*": receive})
            receiver.capture(limit=None, timeout=DEADLINE_S, wakeup=True)
        return events

    def notes(self, task_id: str | None = None) -> list[dict[str, Any]]:
        """What was noted, of `task_id` or of all."""
        notes = [json.loads(line) for line in self.redis.lrange("notes", 0, -1)]
        return [note for note in notes if task_id is None or note["id"] == task_id]

    def noted(self, task_id: str | None = None) -> list[str]:
        """The names of what was noted."""
        return [note["what"] for note in self.notes(task_id)]

    def wait_noted(self, what: str, task_id: str | None = None, times: int = 1) -> None:
        """Wait until `what` was noted `times` times."""
        wait_for(lambda: self.noted(task_id).count(what) >= times, f"{times} x {what}")

    def unacked(self) -> int:
        """Messages that a worker has and has not acknowledged."""
        return int(self.redis.hlen("unacked"))

    def queued(self) -> int:
        """Messages in the queue."""
        return int(self.redis.llen(QUEUE))

    def wait_all_acked(self) -> None:
        """Wait until nothing is queued or unacknowledged."""
        wait_for(lambda: self.unacked() + self.queued() == 0, "all messages acknowledged")


@contextmanager
def opened(url: str) -> Iterator[Project]:
    """A `Project` that is closed with the block."""
    project = Project(url)
    try:
        yield project
    finally:
        project.close()


class Worker:
    """A worker process of `pool_app`; it ends with the block, at the latest."""

    def __init__(self, url: str, folder: Path, concurrency: int, **settings: str) -> None:
        self.log = folder / "worker.log"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([".", "workers"]),
            "POOL_APP_URL": url,
            **{f"POOL_APP_{name.upper()}": value for name, value in settings.items()},
        }
        options = f"-c {concurrency} -E -l info --without-gossip --without-mingle"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "tests.integration.pool_app.app"),
                    *("worker", *options.split()),
                ],
                env=environment,
                cwd=Path(__file__).parents[2],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def output(self) -> str:
        """All that it has written."""
        return self.log.read_text()

    def wait_ready(self) -> Worker:
        """Wait until it takes tasks."""
        wait_for(lambda: " ready." in self.output or not self.alive, "the worker to be ready")
        assert self.alive, self.output
        return self

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait_ended(self) -> int:
        """The exit status."""
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker does not end:\n{self.output}") from None
