"""One task in the pool: where its function runs, its time limits, and how it ends."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from enum import Enum
from typing import Any, NamedTuple

from celery.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded
from greenlet import GreenletExit

from .coroutine import JobCoroutine, SoftLimit
from .loop import LoopThread
from .threads import Threads
from .tracing import Tracer


class Notice(Enum):
    """What a job has to tell the hub's thread."""

    SOFT_LIMIT = "soft limit"  # its soft time limit is over
    ENDED = "ended"  # it was ended, or its function has: at most once each


class Order(NamedTuple):
    """What Celery asks of the pool for one task; time limits in seconds, None for no limit."""

    name: str
    trace: Callable[[], Any]
    accepted: Callable[..., Any] | None
    succeeded: Callable[..., Any] | None
    failed: Callable[..., Any] | None
    timed_out: Callable[..., Any] | None
    soft_limit: float | None
    hard_limit: float | None
    #: Runs the task without the tracer, which is then only called for what it raises.
    direct: Callable[[], Coroutine[Any, Any, Any]] | None = None


class Job:
    """One task, from its acceptance by the pool to its end.

    It ends once, by whoever comes first: its function, its hard limit, `terminate`, `abandon`.
    `notify` is called from any thread when there is something for the hub to do.
    """

    def __init__(
        self,
        order: Order,
        loop: LoopThread,
        threads: Threads,
        notify: Callable[[Job, Notice], None],
    ) -> None:
        self.order = order
        self.name = order.name
        self.tracer: Tracer | None = None
        #: Why it was ended from outside: Terminated, TimeLimitExceeded or GreenletExit.
        self.verdict: BaseException | None = None
        #: The hub knows that it ended.
        self.booked = False
        #: Its function has returned; a job that was ended may still be cleaning up.
        self.returned = False
        #: A thread is busy with its function.
        self.in_thread = False
        self._loop = loop
        self._threads = threads
        self._notify = notify
        self._end = threading.Lock()
        self._value: Any = None
        self.error: BaseException | None = None
        #: When its function was started, of the monotonic clock.
        self.started = 0.0
        self._task: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._soft_due = False

    @property
    def ended(self) -> bool:
        """True once it has ended, whether or not the hub has been told."""
        return self._end.locked()

    def terminate(self, signal: Any = None) -> None:
        """End it as revoked; called by Celery, also in a signal handler."""
        self._condemn(Terminated(signal))

    def abandon(self) -> None:
        """End it without settling its message, which the broker then hands out again."""
        self._condemn(GreenletExit())

    # The tracer's side, on the hub's thread.

    @property
    def is_over(self) -> bool:
        """Whether its function has run without the tracer."""
        return self.order.direct is not None and self.returned

    def begin(self, function: Callable[[], Any], context: Context, *, is_async: bool) -> None:
        """Start `function` in `context`; see `tracing.Body`."""
        if self.returned:  # a task class whose __call__ calls run() more than once
            self._end, self.booked, self.returned = threading.Lock(), False, False
        self.started = time.monotonic()
        if is_async:
            # Called here, so that wrong arguments raise in the tracer.
            self._post_launch(function(), context)
        else:
            if self.order.soft_limit or self.order.hard_limit:
                self._loop.post(self._arm)
            self._threads.submit(lambda: self._call(function, context))

    def result(self) -> Any:
        """What the function returned; raises what it raised."""
        value, error = self._value, self.error
        self._value = self.error = None
        if error is None:
            return value
        try:
            raise error
        finally:
            del error  # this frame is in its traceback

    # In a thread.

    def _call(self, function: Callable[[], Any], context: Context) -> None:
        if self.ended:
            self.finish(None, None)
            return
        self.in_thread = True
        try:
            value = context.run(function)
        except BaseException as error:  # noqa: BLE001  # the tracer raises it
            self.finish(None, error)
            return
        if not inspect.iscoroutine(value):
            self.finish(value, None)
            return
        # A decorator hid that the task is an `async def`.
        self.in_thread = False
        self._post_launch(value, context)

    def _post_launch(self, coroutine: Coroutine[Any, Any, Any], context: Context) -> None:
        try:
            self._loop.post(lambda: self._launch(coroutine, context))
        except RuntimeError as error:  # the loop is closed
            coroutine.close()
            self.finish(None, error)

    # On the loop.

    def _launch(self, coroutine: Coroutine[Any, Any, Any], context: Context) -> None:
        if self.ended:
            coroutine.close()
            self.finish(None, None)
            return
        try:
            if not self._timers:
                self._arm()
        except Exception as error:  # noqa: BLE001 - a time limit that is none, from elsewhere
            coroutine.close()
            self.finish(None, error)
            return
        self._task = self._loop.spawn(JobCoroutine(coroutine, self), context)

    def finish(self, value: Any, error: BaseException | None) -> None:
        """The function has ended; ignored but for the clean-up if the job had ended before."""
        if self._end.acquire(blocking=False):
            if isinstance(error, SoftLimit):
                # In place of the cross-breed, what the task's code and the result store know.
                error = SoftTimeLimitExceeded(*error.args).with_traceback(error.__traceback__)
            self._value, self.error = value, error
        self.returned = True
        self._task = None  # its context holds the tracer, which holds this
        if self._timers:
            with suppress(RuntimeError):  # the loop is closed, and its timers with it
                self._loop.post(self._disarm)
        self._notify(self, Notice.ENDED)

    def take_soft_limit(self) -> SoftLimit | None:
        """The exception to raise in the coroutine in place of a cancellation, if it is due."""
        if not self._soft_due or self._task is None:
            return None
        self._soft_due = False
        self._task.uncancel()
        return SoftLimit(self.order.soft_limit)

    def _arm(self) -> None:
        soft, hard = self.order.soft_limit, self.order.hard_limit
        if soft:
            self._timers.append(self._loop.call_later(soft, self._exceed_soft))
        if hard:
            self._timers.append(self._loop.call_later(hard, self._exceed_hard))

    def _disarm(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _exceed_soft(self) -> None:
        if self.ended:
            return
        self._notify(self, Notice.SOFT_LIMIT)
        if self._task is not None:
            self._soft_due = True
            self._task.cancel()

    def _exceed_hard(self) -> None:
        self._condemn(TimeLimitExceeded(self.order.hard_limit))

    def _condemn(self, verdict: BaseException) -> None:
        if not self._end.acquire(blocking=False):
            return
        self.verdict = verdict
        with suppress(RuntimeError):  # the loop is closed, and all its coroutines with it
            # By way of the loop also for the notice: the hub has a lock that the code under a
            # signal handler may hold.
            self._loop.post(self._execute)

    def _execute(self) -> None:
        if self._task is not None:
            self._soft_due = False
            self._task.cancel()
        self._notify(self, Notice.ENDED)
