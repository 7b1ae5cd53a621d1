"""What the watchdog looks at in a worker, and how a worker ends that is stuck."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import redis
from celery import bootsteps
from celery.worker import state

from fanout_workers import watchdog
from fanout_workers.intake import Intake
from fanout_workers.transport import custody
from fanout_workers.watchdog import EXIT_STUCK, Check, Pulse, Watchdog

log = logging.getLogger(__name__)

#: Seconds between two beats of the hub.
_BEAT_S = 0.2
#: How long what is in flight may take to end, as a multiple of the time that made it stuck.
_PATIENCE = 10


class Liveness:
    """Ends this worker with `EXIT_STUCK` when it is stuck.

    Args:
        intake: says how much room there is for more.
        begin_stop: lets what is in flight finish, and sends the rest back; from any thread.
        after_s: how long it has to be stuck, in seconds.
    """

    def __init__(self, intake: Intake, begin_stop: Callable[[], None], after_s: float) -> None:
        self._intake = intake
        self._begin_stop = begin_stop
        self._after_s = after_s
        self._hub = Pulse("Celery's hub")
        self._admitted = 0
        self._dog: Watchdog | None = None

    def step(self) -> type[bootsteps.StartStopStep]:
        """The step of Celery's consumer that lets the hub beat."""
        return type("LivenessStep", (_Step,), {"pulse": self._hub})

    async def open(self) -> None:
        """Begin to watch; on the event loop that runs the items."""
        loop = asyncio.get_running_loop()
        rounds = Pulse("the event loop", loop.call_soon_threadsafe)
        rounds.beat()  # it does now: the first item may stop it before the first look
        checks: dict[str, Check] = {
            "loop": rounds,
            "hub": self._hub_fault,
            "consumer": self._consumer_fault,
        }
        self._dog = Watchdog(checks, self._on_stuck)
        self._dog.start(self._after_s)

    async def close(self) -> None:
        """The worker ends by itself."""
        if self._dog is not None:
            self._dog.stop()

    def _hub_fault(self) -> str | None:
        # While Redis is away, Celery waits for it on the hub's thread.
        fault = self._hub()
        return fault if fault and not _is_stopping() and _waiting(None) is not None else None

    def _consumer_fault(self) -> str | None:
        admitted = sum(one.holdings.admitted for one in custody.custodies())
        before, self._admitted = self._admitted, admitted
        if admitted != before or not self._intake.room or _is_stopping():
            return None
        waiting = _waiting(self._intake.queue)
        return f"{waiting} messages wait, and none is delivered" if waiting else None

    def _on_stuck(self, name: str, fault: str) -> None:
        log.critical(
            "%s, for %.0f s: this worker ends with status %d, to be started again\n%s",
            *(fault, self._after_s, EXIT_STUCK, watchdog.stacks()),
        )
        if name == "consumer":
            # What is in flight may end; then Celery ends as if it had been told to.
            self._begin_stop()
            state.should_stop = EXIT_STUCK
            time.sleep(_PATIENCE * self._after_s)
        # What runs may be what blocks the rest.
        counted = () if name == "consumer" else custody.running_tags() or ()
        for one in custody.custodies():
            try:
                one.abandon(counted=counted)
            except redis.RedisError as error:
                log.error("what this worker has comes back after the timeout: %r", error)
        watchdog.end_process()


def _waiting(queue: str | None) -> int | None:
    """Messages in the queue, if Redis answers and takes writes; else None."""
    waiting = 0
    try:
        for one in custody.custodies():
            one.broker.renew([""])
            waiting += one.broker.waiting(queue) if queue else 0
    except redis.RedisError:
        return None
    return waiting


def _is_stopping() -> bool:
    # False means "go on", and 0 is the exit status of a worker that stops.
    return any(
        flag is not None and flag is not False
        for flag in (state.should_stop, state.should_terminate)
    )


class _Step(bootsteps.StartStopStep):
    """Lives as long as one connection to the broker."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    pulse: Pulse

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Called anew for each connection, whose timers end with it."""
        self.pulse.beat()
        hub.call_repeatedly(_BEAT_S, self.pulse.beat)
