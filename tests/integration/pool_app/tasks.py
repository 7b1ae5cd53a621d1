"""The project's tasks: one for each way in which a task can run and end."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from fanout_workers.pool import run_directly, run_on_loop
from tests.integration.pool_app.app import app, baggage, note, note_count

ERRORS: dict[str, Callable[[], BaseException]] = {
    "cancelled": asyncio.CancelledError,
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "ignore": Ignore,
    "reject": lambda: Reject("no", requeue=False),
    "group": lambda: BaseExceptionGroup("both", [SystemExit(1), ValueError()]),
    "memory": lambda: MemoryError("full"),
    "value": lambda: ValueError("bad"),
}


@app.task
async def add(x: int, y: int) -> int:
    """An ordinary coroutine."""
    await asyncio.sleep(0)
    return x + y


@app.task
def add_sync(x: int, y: int) -> int:
    """An ordinary function."""
    return x + y


@app.task(bind=True)
def block(self: Any, seconds: float) -> str:
    """A function that holds its thread."""
    note("blocking", self.request.id)
    time.sleep(seconds)
    note("unblocked", self.request.id)
    return threading.current_thread().name


@app.task
def total(values: list[int]) -> int:
    """The body of a chord."""
    return sum(values)


@app.task
async def total_async(values: list[int]) -> int:
    """The body of a chord, as a coroutine."""
    return sum(values)


@app.task(bind=True)
async def sleep(self: Any, seconds: float) -> str:
    """Notes that it starts, ends or is cancelled, and by which name it knows itself then."""
    note("start", self.request.id)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        await asyncio.sleep(0.05)  # a clean-up that has to wait
        note("cancelled", self.request.id)
        raise
    note("end", self.request.id)
    return str(self.request.id)


@app.task(bind=True, acks_late=False)
async def sleep_acked_early(self: Any, seconds: float) -> None:
    """Acknowledged at its start."""
    note("start", self.request.id)
    await asyncio.sleep(seconds)


@app.task(bind=True)
async def stubborn(self: Any, seconds: float) -> None:
    """Does not let itself be cancelled."""
    note("start", self.request.id)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            await asyncio.sleep(end - time.monotonic())
        except asyncio.CancelledError:
            note("ignored", self.request.id)


@app.task(bind=True)
async def who_am_i(self: Any) -> list[Any]:
    """Its request's id over many awaits, in itself, in a child task and in a thread."""

    async def child() -> Any:
        await asyncio.sleep(0)
        return self.request.id

    seen = []
    for _ in range(5):
        seen.append(self.request.id)
        await asyncio.sleep(0.01)
    async with asyncio.TaskGroup() as group:
        in_child = group.create_task(child())
    in_thread = await asyncio.to_thread(lambda: self.request.id)
    return [*seen, in_child.result(), in_thread, app.current_worker_task.request.id]


@app.task
async def what_is_set() -> str | None:
    """What the prerun signal has set."""
    return baggage.get()


@app.task(bind=True, max_retries=3)
async def retried(self: Any, times: int) -> int:
    """Asks for its retry itself."""
    await asyncio.sleep(0)
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return int(self.request.retries)


@app.task(bind=True, autoretry_for=(ConnectionError,), retry_kwargs={"countdown": 0}, max_retries=3)
async def autoretried(self: Any, times: int) -> int:
    """Retried by Celery."""
    await asyncio.sleep(0)
    if self.request.retries < times:
        raise ConnectionError
    return int(self.request.retries)


@app.task(ignore_result=True)
async def unkept() -> int:
    """Its result is stored nowhere."""
    return 7


@app.task
async def fail(kind: str) -> None:
    """Raises one of `ERRORS`."""
    await asyncio.sleep(0)
    raise ERRORS[kind]()


@app.task
async def after_failure_by_id(task_id: str) -> None:
    """A link_error that Celery publishes."""
    note("errback by id", task_id)


@app.task
async def after_failure(request: Any, error: BaseException, _traceback: Any) -> None:
    """A link_error that Celery calls in place."""
    await asyncio.sleep(0.01)
    note("errback", request.id, error=type(error).__name__)


@app.task(bind=True)
async def requeue_once(self: Any) -> bool:
    """Sends its message back the first time."""
    note("start", self.request.id)
    if not self.request.delivery_info["redelivered"]:
        raise Reject("again", requeue=True)
    return True


@app.task
async def leave_a_bomb() -> None:
    """Leaves a task behind that tries to end the process."""

    async def bomb() -> None:
        raise SystemExit(1)

    app.bomb = asyncio.create_task(bomb())


@app.task(bind=True, soft_time_limit=0.2)
async def soft_caught(self: Any) -> str:
    """Has children when its soft limit comes, and gives what it has."""

    async def child() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note("child cancelled", self.request.id)
            raise

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
    except SoftTimeLimitExceeded as limit:
        await asyncio.sleep(0.01)
        return f"partial after {limit.args[0]} s"
    return "whole"


@app.task(soft_time_limit=0.1)
async def soft_uncaught() -> None:
    """Does not know of its limit."""
    await asyncio.wait_for(asyncio.sleep(60), 30)


@app.task
def through_the_loop(x: int) -> int:
    """A function that waits for a coroutine."""

    async def double() -> int:
        await asyncio.sleep(0)
        return 2 * x

    return run_on_loop(double()).result(10)


def disguised(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """A decorator whose result does not look like a coroutine function."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@app.task
@disguised
async def add_disguised(x: int, y: int) -> int:
    """A coroutine function in disguise."""
    await asyncio.sleep(0)
    return x + y


class Twice(Task):  # type: ignore[misc]
    """A task class with a `__call__` and hooks of its own."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.run(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Noted."""
        note("on_success", task_id, request=self.request.id)


@app.task(base=Twice, bind=True)
async def twice(self: Any) -> str:
    """Run twice by its class."""
    note("start", self.request.id)
    await asyncio.sleep(0)
    return str(self.request.id)


@app.task(bind=True, ignore_result=True, Request="fanout_workers.events:ItemRequest")
async def either_way(self: Any, how: str) -> None:
    """Notes that Celery's tracer has called it."""
    note("by the tracer", self.request.id)
    if how in ERRORS:
        raise ERRORS[how]()


async def _without_tracer(task_id: str, keywords: dict[str, Any], headers: object) -> None:
    note("directly", task_id)
    if (how := keywords["how"]) == "requeue once":
        if note_count("directly", task_id) == 1:
            raise Reject("again", requeue=True)
    elif how == "for ever":
        await asyncio.sleep(3600)
    elif how in ERRORS:
        raise ERRORS[how]()


run_directly(either_way, _without_tracer)
