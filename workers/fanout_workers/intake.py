"""How many items this process holds: its quota, and a small reserve.

The reserve waits for permits inside the process, so that a refill never waits for Redis; it is no
larger than that, because what one process hoards the others cannot do at the end of a job. Slots
and prefetch follow the quota up and down. Without any quota for a while, the process gives its
reserve back to the queue and takes nothing from it.

Everything here runs on the hub's thread but `send_back`. The permits are read from there: they
are integers that another thread changes, and a figure of a moment ago is good enough.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps

from fanout_workers.permits import Permits

log = logging.getLogger(__name__)

#: Seconds between two looks.
EVERY_S = 0.2
#: The reserve: this many items, and the work of so many seconds: a burst of ends must not empty it
#: before the fetch has caught up.
RESERVE = 16
RESERVE_S = 0.1
#: Seconds without quota after which the reserve goes back.
IDLE_S = 5.0
#: kombu takes a larger prefetch count for "no limit".
_MOST = 0xFFFF


class Gauge:
    """How many items to hold, from how fast they go.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._started = 0
        self._per_s = 0.0
        self._idle_since: float | None = None

    @property
    def reserve(self) -> int:
        """Items that should wait for permits."""
        return RESERVE + round(self._per_s * RESERVE_S)

    def wanted(self, quota: int, started: int, held: int, busy: int) -> int:
        """Items to hold from now on; 0 = give back what has not started, and take no more.

        Args:
            quota: requests that may be in flight.
            started: requests begun since the process began.
            held: items in the pool.
            busy: those of them that are in flight or wait for a permit. The others back off or
                are being settled: they hold no permit, and must not keep the reserve small.
        """
        now = self._clock()
        self._measure(now, started)
        if quota:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= IDLE_S:
            return 0
        parked = min(max(0, held - busy), quota + RESERVE)
        return min(quota + parked + self.reserve, _MOST)

    def _measure(self, now: float, started: int) -> None:
        passed = now - self._at
        if passed < EVERY_S / 2:
            return
        rate = (started - self._started) / passed
        # Up at once, down over some seconds: a lull is no reason to run dry after it.
        weight = 1.0 if rate > self._per_s else min(1.0, passed / 5.0)
        self._per_s += weight * (rate - self._per_s)
        self._at, self._started = now, started


class Intake:
    """Keeps Celery's prefetch count and the pool's slots at what the gauge says.

    Args:
        permits: whose quota is followed.
        queue: name of the queue that is consumed.
        send_back: ends the wait of fresh items; called on the hub's thread.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        permits: Permits,
        queue: str,
        send_back: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._permits = permits
        self._send_back = send_back
        self._gauge = Gauge(clock)
        self._closed = False
        self.queue = queue
        #: How many more items there was room for at the last look; 0 while none are taken.
        self.room = 0

    def step(self) -> type[bootsteps.StartStopStep]:
        """The step of Celery's consumer that drives this; for `app.steps["consumer"]`."""
        return type("IntakeStep", (_Step,), {"intake": self})

    def adjust(self, consumer: Any) -> None:
        """Follow the quota now."""
        pool = consumer.pool
        held = pool.num_held
        wanted = self._gauge.wanted(
            self._permits.quota,
            sum(load.started for load in self._permits.loads()),
            held,
            sum(self._permits.in_flight().values()) + self._permits.waiting,
        )
        self.room = max(0, wanted - held) if _consumes(consumer, self.queue) else 0
        if not wanted:
            self._pause(consumer)
            return
        if self._closed:
            self._closed = False
            consumer.add_task_queue(self.queue)
        # Slots first when they grow, last when they shrink: what is delivered must find one.
        if (more := wanted - pool.num_processes) > 0:
            pool.grow(more)
        _set_prefetch(consumer, wanted)
        if (fewer := pool.num_processes - max(wanted, held)) > 0:
            pool.shrink(fewer)

    def _pause(self, consumer: Any) -> None:
        if not self._closed:
            self._closed = True
            log.info("no quota at any endpoint of the tier: items go back to the queue")
            consumer.cancel_task_queue(self.queue)
        self._send_back()


def _consumes(consumer: Any, queue: str) -> bool:
    # Somebody may have told it to stop, by Celery's remote control.
    return consumer.task_consumer is not None and bool(consumer.task_consumer.consuming_from(queue))


def _set_prefetch(consumer: Any, wanted: int) -> None:
    consumer.initial_prefetch_count = wanted  # what the next connection begins with
    change = wanted - consumer.qos.value
    if change > 0:
        consumer.qos.increment_eventually(change)
    elif change < 0:
        consumer.qos.decrement_eventually(-change)


class _Step(bootsteps.StartStopStep):
    """Lives as long as one connection to the broker."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    intake: Intake

    def start(self, c: Any) -> None:
        """Before the first message is taken."""
        self.intake.adjust(c)

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Called anew for each connection, whose timers end with it."""
        hub.call_repeatedly(EVERY_S, self.intake.adjust, c)
