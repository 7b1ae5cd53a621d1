"""Celery's tracer in a greenlet that waits for its task without holding a thread.

The tracer of a task (signals, retries, results, callbacks) is synchronous and runs on the hub's
thread. Where it calls the task's function, the greenlet is parked and the hub goes on; it is
resumed when the function has ended elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any, NamedTuple, Protocol

from billiard.einfo import ExceptionInfo
from celery import _state
from celery.exceptions import (
    ImproperlyConfigured,
    Terminated,
    WorkerLostError,
    WorkerShutdown,
    WorkerTerminate,
)
from celery.utils import threads as celery_threads
from greenlet import GreenletExit, getcurrent, greenlet

#: What a tracer's greenlet answers when it has parked.
PARKED = object()

# Celery keeps the stack of requests by greenlet. Coroutines share one, so that each carries
# the greenlet of its tracer, and with it its own stack, in its context.
_owner: ContextVar[Any] = ContextVar("celery_tracer", default=None)


def _identity() -> Any:
    owner = _owner.get()
    return getcurrent() if owner is None else owner


class Body(Protocol):
    """Runs the function of a task away from the hub."""

    name: str

    @property
    def is_over(self) -> bool:
        """Whether the function has run already, without the tracer."""

    def begin(self, function: Callable[[], Any], context: Context, *, is_async: bool) -> None:
        """Start `function` in `context`; a coroutine function on the loop, others in a thread."""

    def result(self) -> Any:
        """What the function returned; raises what it raised."""


class Traced(NamedTuple):
    """What a tracer left: `(failed, value or ExceptionInfo, runtime)`, or what escaped it."""

    result: Any = None
    escaped: ExceptionInfo | None = None


class Tracer(greenlet):
    """Runs `trace` up to the task's function, which `body` runs; `switch()` again to go on.

    A switch returns PARKED or, at the end, a `Traced`, or None after a GreenletExit.
    """

    def __init__(self, trace: Callable[[], Any], body: Body) -> None:
        super().__init__(self._trace)
        self.body = body
        self._target: Callable[[], Any] | None = trace
        self._raised: BaseException | None = None
        self.gr_context = copy_context()

    def perform(self, function: Callable[[], Any], *, is_async: bool) -> Any:
        """Called in the greenlet, in place of the task's function."""
        if not self.body.is_over:
            # A copy of the tracer's context: what task_prerun has set has to reach the task.
            context = copy_context()
            context.run(_owner.set, self)
            self.body.begin(function, context, is_async=is_async)
            _park(self)
        try:
            return self.body.result()
        except BaseException as error:
            self._raised = error
            raise

    def _trace(self) -> Traced | None:
        # Not kept: it holds the message, and this greenlet outlives its end in contexts.
        target, self._target = self._target, None
        if target is None:
            raise RuntimeError("a tracer runs once")
        try:
            return Traced(_settleable(target()))
        except GreenletExit:
            return None
        except (WorkerShutdown, WorkerTerminate) as error:
            if self._raised is None:
                raise  # of a signal handler, which happened to interrupt this greenlet
            return Traced(escaped=_failure(error))
        except BaseException as error:  # noqa: BLE001  # whatever it is, the message must be settled
            return Traced(escaped=_failure(error))
        finally:
            self._raised = None


def _park(tracer: greenlet) -> None:
    parent = tracer.parent
    if parent is None:
        raise RuntimeError("a tracer cannot run without the hub's greenlet")
    parent.switch(PARKED)


def _settleable(result: Any) -> Any:
    """`result` of a tracer, as Celery's Request.on_success can settle it."""
    failed, value, _ = result
    if failed:
        error = getattr(value.exception, "exc", value.exception)
        if isinstance(error, MemoryError):
            # Recorded as it is; but the callback would raise it again, and acknowledge nothing.
            value.exception = RuntimeError(repr(error))
    return result


def _failure(error: BaseException) -> ExceptionInfo:
    """`error` as Celery's Request.on_failure can settle it."""
    told = error
    if not isinstance(error, Exception | SystemExit | KeyboardInterrupt):
        is_cancel = isinstance(error, asyncio.CancelledError)
        told = Terminated("cancelled") if is_cancel else WorkerLostError(repr(error))
    elif isinstance(error, MemoryError):
        told = WorkerLostError(repr(error))  # on_failure would raise it again, and settle nothing
    return exception_info(told)


def exception_info(error: BaseException) -> ExceptionInfo:
    """`error` in the form that Celery's callbacks take, which needs a traceback."""
    try:
        raise error
    except BaseException:  # noqa: BLE001  # that is the point
        return ExceptionInfo()


def install(app: Any) -> None:
    """Route the functions of all tasks of `app` through the tracer that calls them.

    May be repeated, and must be before Celery builds its tracers. Raises ImproperlyConfigured
    under USE_FAST_LOCALS, which keeps Celery's requests by thread only.
    """
    if celery_threads.USE_FAST_LOCALS:
        raise ImproperlyConfigured("AsyncPool cannot work with USE_FAST_LOCALS in the environment.")
    _state._task_stack.__ident_func__ = _identity
    for task in list(app.tasks.values()):
        task.request_stack.__ident_func__ = _identity
        # autoretry_for wraps `run` around `_orig_run`; it must see the outcome, not a coroutine.
        attribute = "_orig_run" if hasattr(task, "_orig_run") else "run"
        function = getattr(task, attribute)
        if not hasattr(function, "__async_pool__"):
            setattr(task, attribute, _routed(task.name, function))


def _routed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    is_async = inspect.iscoroutinefunction(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        tracer = getcurrent()
        # Another task's tracer calls a function where this is that task's link_error.
        if isinstance(tracer, Tracer) and (is_async or tracer.body.name == name):
            return tracer.perform(functools.partial(function, *args, **kwargs), is_async=is_async)
        return function(*args, **kwargs)

    run.__async_pool__ = True  # type: ignore[attr-defined]
    return run
