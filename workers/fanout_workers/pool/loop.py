"""The event loop that runs the coroutines: one thread, what opens and closes on it, its calls."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import Context
from typing import Any, TypeVar

from celery.utils.log import get_logger

from .mailbox import Mailbox

logger = get_logger(__name__)

T = TypeVar("T")
Hook = Callable[[], Awaitable[None]]
HookT = TypeVar("HookT", bound=Hook)

#: How long cancelled coroutines may take to clean up at the end, in seconds.
CANCEL_GRACE_S = 3.0

_start_hooks: list[Hook] = []
_stop_hooks: list[Hook] = []
_current: LoopThread | None = None


def on_loop_start(hook: HookT) -> HookT:
    """Register an `async def hook() -> None` to run on the loop before the first task.

    Hooks run in the order of their registration. An exception from one stops the worker.
    """
    _start_hooks.append(hook)
    return hook


def on_loop_stop(hook: HookT) -> HookT:
    """Register an `async def hook() -> None` to run on the loop after the last task.

    Hooks run in the reverse order of their registration, also after a start hook has failed.
    An exception from one is logged, and the others still run.
    """
    _stop_hooks.append(hook)
    return hook


def run_on_loop(coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Run `coroutine` on the worker's loop, from any other thread.

    Raises RuntimeError where no worker with this pool runs in the process.
    """
    if _current is None or _current.closed:
        coroutine.close()
        raise RuntimeError("no worker with an AsyncPool runs in this process")
    return _current.submit(coroutine)


class LoopThread:
    """A daemon thread with an event loop: uvloop's where it can be imported, else asyncio's.

    `on_closed` is called on the thread as its last act.
    """

    def __init__(self, on_closed: Callable[[], object]) -> None:
        self._loop = _new_loop()
        self._calls: Mailbox[Callable[[], object]] = Mailbox(self._wake)
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_closed = on_closed
        self._started = threading.Event()
        self._closed = threading.Event()
        self._stopping = False
        self._stop = asyncio.Event()
        self._starting: asyncio.Future[None] | None = None
        self._start_error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="AsyncPool-loop", daemon=True)

    @property
    def closed(self) -> bool:
        """True once the hooks have run and the loop is closed."""
        return self._closed.is_set()

    def start(self, while_waiting: Callable[[], object], every_s: float = 0.2) -> None:
        """Start the thread and wait for the start hooks; raises the error of the first to fail.

        `while_waiting` is called every `every_s` seconds meanwhile and may raise to give up.
        """
        global _current
        self._thread.start()
        _current = self
        while not self._started.wait(every_s):
            while_waiting()
        if self._start_error is not None:
            raise self._start_error

    def post(self, call: Callable[[], object]) -> None:
        """Call `call` on the loop, in order; from any thread, also in a signal handler.

        Raises RuntimeError once the loop is closed.
        """
        self._calls.post(call)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run `coroutine` in a task of its own; from any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def spawn(self, coroutine: Coroutine[Any, Any, None], context: Context) -> asyncio.Task[None]:
        """Run a job's coroutine in `context`; only on the loop."""
        task = self._loop.create_task(coroutine, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def call_later(self, seconds: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        """Call `call` after `seconds`; only on the loop."""
        return self._loop.call_later(seconds, call)

    def stop(self) -> None:
        """Begin to close: cancel the jobs that are left, run the stop hooks, close the loop.

        Returns at once; `join` waits. A second call changes nothing.
        """
        if not self._stopping:
            self._stopping = True
            with suppress(RuntimeError):  # closed already, after a start that failed
                self.post(self._begin_stop)

    def join(self, timeout: float) -> bool:
        """Wait for the end of `stop`, at most `timeout` seconds; True if it has come."""
        return self._closed.wait(timeout)

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        for call in self._calls.take():
            try:
                call()
            except Exception:
                logger.exception("A call on the event loop raised an exception")

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        serving = self._loop.create_task(self._serve())
        try:
            while not serving.done():
                self._run(serving)
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()
            self._started.set()
            self._closed.set()
            self._on_closed()

    def _run(self, serving: asyncio.Task[None]) -> None:
        try:
            self._loop.run_until_complete(serving)
        except (SystemExit, KeyboardInterrupt):
            # asyncio passes these on from a task that nobody awaits. The jobs beside it go on.
            if not serving.done():
                logger.critical("A background task tried to end the process", exc_info=True)

    async def _serve(self) -> None:
        try:
            self._starting = asyncio.ensure_future(_run_hooks(_start_hooks))
            await self._starting
        except BaseException as error:  # noqa: BLE001  # start() raises it
            self._start_error = error
        else:
            self._started.set()
            await self._stop.wait()
        await self._wind_up()

    def _begin_stop(self) -> None:
        self._stop.set()
        if self._starting is not None:
            self._starting.cancel()

    async def _wind_up(self) -> None:
        # Jobs first: they use what the hooks close.
        stubborn = await _cancel(self._tasks)
        for hook in reversed(_stop_hooks):
            try:
                await hook()
            except Exception:
                logger.exception("%r failed while the worker stopped", hook)
        await _cancel(asyncio.all_tasks() - {asyncio.current_task()} - stubborn)
        await self._loop.shutdown_asyncgens()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def _run_hooks(hooks: Iterable[Hook]) -> None:
    for hook in hooks:
        await hook()


async def _cancel(tasks: Iterable[asyncio.Task[Any] | None]) -> set[asyncio.Task[Any]]:
    """Those that have not ended in time."""
    left = [task for task in tasks if task is not None]
    if not left:
        return set()
    for task in left:
        if not task.cancelling():  # else a second time would cut its clean-up short
            task.cancel()
    _, pending = await asyncio.wait(left, timeout=CANCEL_GRACE_S)
    if pending:
        logger.error("%d coroutines ignored their cancellation: %r", len(pending), pending)
    return pending
