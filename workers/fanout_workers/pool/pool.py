"""The pool: takes tasks from Celery, starts them as slots become free, settles them."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import partial
from typing import Any

from celery.concurrency.base import BasePool
from celery.exceptions import ImproperlyConfigured, TimeLimitExceeded
from celery.utils import log
from celery.worker import state
from greenlet import GreenletExit
from kombu.asynchronous import get_event_loop

from .direct import direct_call
from .job import Job, Notice, Order
from .loop import LoopThread
from .mailbox import Bell, Mailbox
from .threads import Threads
from .tracing import PARKED, Tracer, exception_info, install

logger = log.get_logger(__name__)

#: How long a cold shutdown waits for cancelled coroutines and for the stop hooks, in seconds.
COLD_GRACE_S = 10.0
#: Seconds between two turns of a hub that fails, while the worker stops.
_AGAIN_S = 0.1


class AsyncPool(BasePool):
    """Runs `async def` tasks on one event loop, `limit` at a time, and others in threads.

    Celery's tracer runs in a greenlet a task on the worker's main thread. Raises
    ImproperlyConfigured at the start where the broker's transport does not use Celery's hub.
    """

    limit: int

    #: Threads for tasks that are not `async def`.
    sync_threads = 8

    def on_start(self) -> None:
        """Open the loop; raises the error of the first start hook that fails."""
        hub: Any = get_event_loop()
        if hub is None:
            raise ImproperlyConfigured(
                "AsyncPool needs a broker whose transport runs on Celery's event loop, "
                "such as Redis or AMQP."
            )
        install(self.app)
        self._hub = hub
        self._stopping = False
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._ended: deque[Job] = deque()
        #: Ended from outside, while their function still cleans up; True if it holds a thread.
        self._leaving: dict[Job, bool] = {}
        self._bell = Bell()
        self._notices: Mailbox[tuple[Job, Notice]] = Mailbox(self._bell.ring)
        self._threads = Threads(self.sync_threads)
        self._loop = LoopThread(on_closed=self._notices.ring)
        try:
            self._loop.start(while_waiting=state.maybe_shutdown)
        except BaseException:
            self._loop.stop()
            self._loop.join(COLD_GRACE_S)
            raise

    def register_with_event_loop(self, hub: Any) -> None:
        """Called anew for each connection, when the hub has forgotten everything."""
        # Not hub.call_soon: it forgets calls when one of them fails, and what such a call asks
        # for in its turn, such as an acknowledgement, waits until the next poll is over.
        hub.add_reader(self._bell, self._answer)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        error_callback: Callable[..., Any] | None = None,
        timeout_callback: Callable[..., Any] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> Job:
        """Run `target`, Celery's tracer, when a slot is free; see BasePool.apply_async."""
        args = tuple(args)
        order = Order(
            name=args[0],
            trace=partial(target, *args, **(kwargs or {})),
            accepted=accept_callback,
            succeeded=callback,
            failed=error_callback,
            timed_out=timeout_callback,
            soft_limit=soft_timeout or self.options.get("soft_timeout"),
            hard_limit=timeout or self.options.get("timeout"),
            direct=direct_call(self.app.tasks.get(args[0]), args),
        )
        job = Job(order, self._loop, self._threads, self._notify)
        self._waiting.append(job)
        self._fill()
        return job

    def flush(self) -> None:
        """The connection is lost: forget what has not started, for the broker sends it again."""
        self._waiting.clear()
        install(self.app)  # the tracers are built anew, also for tasks registered since

    def grow(self, n: int = 1) -> None:
        """Add `n` slots."""
        self.limit += n
        self._notices.ring()

    def shrink(self, n: int = 1) -> None:
        """Take `n` slots away, but not the last; what runs goes on."""
        self.limit = max(1, self.limit - n)

    @property
    def num_held(self) -> int:
        """Tasks taken from Celery and not settled yet."""
        return len(self._running) + len(self._waiting)

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Nothing: all jobs share a pid. Celery calls `Job.terminate` next."""

    def on_stop(self) -> None:
        """Warm shutdown: let what runs end, then close the loop."""
        if log._in_sighandler or self._stopping:
            # A cold shutdown stops the pool in its signal handler, below which anything may be
            # under way. It is done by on_terminate, or by the on_stop that was interrupted.
            self._notices.ring()
            return
        self._stopping = True
        self._waiting.clear()
        self._run_hub_until(lambda: not (self._running or self._notices or self._ended))
        if not _is_cold():
            self._loop.stop()
            self._run_hub_until(lambda: self._loop.closed)
        self._end()

    def on_terminate(self) -> None:
        """Cold shutdown: cancel what runs; what is not acknowledged goes back to the queue."""
        self._stopping = True
        self._waiting.clear()
        self._end()

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        info.update(running=len(self._running), waiting=len(self._waiting))
        info["sync-threads"] = self._threads.count
        return info

    def _notify(self, job: Job, notice: Notice) -> None:
        self._notices.post((job, notice))

    def _answer(self) -> None:
        self._bell.silence()  # first, or a ring between the two would be lost
        self._settle()

    def _settle(self) -> None:
        for job, notice in self._notices.take():
            if notice is Notice.SOFT_LIMIT:
                _tell(job.order.timed_out, True, job.order.soft_limit)
            else:
                self._running.discard(job)
                self._ended.append(job)
        # The next first, the books later: the server should not wait for the bookkeeping.
        self._fill()
        while self._ended:
            self._book(self._ended.popleft())

    def _fill(self) -> None:
        if self._stopping or _is_cold():
            return
        while self._waiting and len(self._running) < self.limit:
            self._start(self._waiting.popleft())

    def _start(self, job: Job) -> None:
        self._running.add(job)
        _tell(job.order.accepted, os.getpid(), time.monotonic())
        if job.ended:  # revoked while it waited; its notice is on the way
            return
        if job.order.direct is not None:
            job.begin(job.order.direct, Context(), is_async=True)
        else:
            job.tracer = Tracer(job.order.trace, job)
            self._advance(job, job.tracer)

    def _advance(self, job: Job, tracer: Tracer) -> None:
        traced = tracer.switch()
        if traced is PARKED:
            self._running.add(job)
            return
        job.tracer = None
        self._running.discard(job)
        if traced.escaped is None:
            _tell(job.order.succeeded, traced.result)
        else:
            _tell(job.order.failed, traced.escaped)

    def _book(self, job: Job) -> None:
        if job.booked:
            self._leave(job)
        elif job.verdict is None:
            job.booked = True
            if job.order.direct is not None:
                self._conclude(job)
            elif job.tracer is not None:
                self._advance(job, job.tracer)
        else:
            job.booked = True
            self._condemn(job, job.verdict)

    def _conclude(self, job: Job) -> None:
        if job.error is None:
            _tell(job.order.succeeded, (0, "None", time.monotonic() - job.started))
        else:  # the tracer knows what has to follow from it
            job.tracer = Tracer(job.order.trace, job)
            self._advance(job, job.tracer)

    def _condemn(self, job: Job, verdict: BaseException) -> None:
        if isinstance(verdict, TimeLimitExceeded):
            _tell(job.order.timed_out, False, job.order.hard_limit)
        elif not isinstance(verdict, GreenletExit):
            _tell(job.order.failed, exception_info(verdict))
        if job.tracer is None or job.returned:
            self._unwind(job)
            return
        # The tracer stays parked until the coroutine has cleaned up, which may want its request.
        self._leaving[job] = job.in_thread
        if self._leaving[job]:
            self._threads.replace()

    def _leave(self, job: Job) -> None:
        if job in self._leaving:
            if self._leaving.pop(job):
                self._threads.restore()
            self._unwind(job)

    def _unwind(self, job: Job) -> None:
        if job.tracer is not None and not job.tracer.dead:
            job.tracer.throw(GreenletExit)
        job.tracer = None

    def _run_hub_until(self, done: Callable[[], bool]) -> None:
        """Keep Celery's hub going, for settling, acknowledging and heartbeats."""
        # The shutdown may have begun on a lost connection, when the hub had forgotten the bell.
        self._hub.remove_reader(self._bell)
        self.register_with_event_loop(self._hub)
        ticks, told = self._hub.create_loop(), ""
        while not (done() or _is_cold()):
            try:
                next(ticks)
            except StopIteration:
                ticks = self._pause_hub()
            except Exception as error:  # noqa: BLE001  # the tasks must end, whatever it is
                # A broker that is away fails at each turn, before the bell is heard.
                if (said := repr(error)) != told:
                    logger.warning("The connection failed during the shutdown: %s", said)
                    told = said
                _tell(self._hub.reset)
                self.register_with_event_loop(self._hub)
                ticks = self._pause_hub()

    def _pause_hub(self) -> Any:
        """Another generator of the hub's turns, for one that has ended, and not too soon."""
        time.sleep(_AGAIN_S)
        self._answer()
        return self._hub.create_loop()

    def _end(self) -> None:
        for job in self._running:
            job.abandon()
        self._loop.stop()
        if not self._loop.join(COLD_GRACE_S):
            logger.error("The event loop did not stop in %s s; it is left behind", COLD_GRACE_S)
        self._settle()
        for job in [*self._running, *self._leaving]:
            self._unwind(job)
        self._threads.stop()
        _tell(self._hub.remove_reader, self._bell)
        self._bell.close()


def _is_cold() -> bool:
    return state.should_terminate is not None and state.should_terminate is not False


def _tell(callback: Callable[..., Any] | None, *args: Any) -> None:
    """Call what Celery wants to be called; its errors must not stop the pool."""
    if callback is not None:
        try:
            callback(*args)
        except Exception:
            logger.exception("%r raised an exception in the pool", callback)
