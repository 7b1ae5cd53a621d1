"""What a worker has to know of the jobs whose items it runs, and how it ends a cancelled one.

The states of the jobs in work are looked up twice a second, which costs an item nothing. One that
turns out to be cancelled aborts the requests of its items at once: that closes their connections,
which is how a server is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from fanout import JobError, Task, Unavailable, UsageError
from fanout.aio import ended
from fanout.store import JobState, Store
from fanout.wire import sha256_of
from fanout_workers.attempts import Effort

log = logging.getLogger(__name__)

#: How old a job's state may be, in seconds: how long after `cancel` an item may still start.
_FRESH_S = 0.5
#: Jobs remembered at most; a long-lived worker must not grow with every job it has seen.
_LIMIT = 256


#: Cancelled jobs whose figures are kept for who asks.
_TOLD_LIMIT = 16


@dataclass(slots=True)
class _Known:
    task: Task
    state: JobState
    checked_at: float


@dataclass(slots=True)
class Aborted:
    """What a cancelled job had in work here: requests aborted, and the items that they were of."""

    requests: int = 0
    items: int = 0


@dataclass(slots=True)
class _Work:
    """The items of one job in work."""

    scopes: dict[asyncio.Timeout, Effort] = field(default_factory=dict)

    @property
    def in_flight(self) -> int:
        """Requests at the servers."""
        return sum(effort.in_flight for effort in self.scopes.values())

    def abort(self) -> list[int]:
        """End the scopes of all items that are not ended yet; what each had at the servers."""
        now = asyncio.get_running_loop().time()
        fresh = [scope for scope in self.scopes if scope.when() is None]
        for scope in fresh:
            scope.reschedule(now)
        return [self.scopes[scope].in_flight for scope in fresh]


class Jobs:
    """The task instances of the jobs in work, with the jobs' states.

    Args:
        store: where the jobs' specs are.
        kinds: the task kinds that this worker can run, by name.
    """

    def __init__(self, store: Store, kinds: Mapping[str, type[Task]]) -> None:
        self._store = store
        self._kinds = kinds
        self._known: dict[str, _Known] = {}
        self._looking: dict[str, asyncio.Task[_Known]] = {}
        self._work: dict[str, _Work] = {}
        self._watcher: asyncio.Task[None] | None = None
        #: What was aborted, by cancelled job; the latest few.
        self.aborted: dict[str, Aborted] = {}
        #: Called when nothing of a cancelled job is in work here any more.
        self.on_cancelled: Callable[[], None] = lambda: None

    @contextmanager
    def running(self, job: str, scope: asyncio.Timeout, effort: Effort) -> Iterator[None]:
        """Keep the state of a job up to date, and end `scope` when it is cancelled."""
        work = self._work.get(job)
        if work is None:
            work = self._work[job] = _Work()
        work.scopes[scope] = effort
        try:
            yield
        finally:
            del work.scopes[scope]
            if not work.scopes:
                del self._work[job]
                if not self.wanted(job):
                    self.on_cancelled()

    def in_flight(self) -> dict[str, int]:
        """Requests at the servers by job; a job with items in work has an entry, even of 0."""
        return {job: work.in_flight for job, work in self._work.items()}

    def aborted_figures(self) -> dict[str, list[int]]:
        """What was aborted, as `WorkerInfo` has it."""
        return {job: [told.requests, told.items] for job, told in self.aborted.items()}

    def wanted(self, job: str, *, fresh: bool = False) -> bool:
        """Whether a `running` job has not been cancelled, as of half a second ago; at once.

        An item that is `fresh`, of which nothing has been sent, is not wanted of a paused job.
        """
        known = self._known.get(job)
        unwanted = ("cancelled", "paused") if fresh else ("cancelled",)
        return known is None or known.state not in unwanted

    async def released(self, job: str, ordinal: int) -> bool:
        """Whether a fresh item has been given back, because its job is paused now."""
        known = self._known.get(job)
        if known is None or known.state != "paused":
            return False
        known.checked_at = 0.0  # a job that goes on must not wait until this is old
        return await self._store.release(job, ordinal)

    def open(self) -> None:
        """Begin to keep states up to date; not from an item, whose context would be kept."""
        self._watcher = asyncio.create_task(self._watch(), name="job states")

    async def aclose(self) -> None:
        """Stop keeping states up to date."""
        if self._watcher is not None:
            await ended(self._watcher)

    async def refresh(self) -> None:
        """Look up the states of the jobs in work, where they are old."""
        for job in tuple(self._work):
            with suppress(JobError, UsageError, Unavailable):  # known as before, until it tells
                _, state = await self.task_of(job)
                if state == "cancelled":
                    self._abort(job)

    async def _watch(self) -> None:
        # Beside the items: one that has its permit must not wait for Redis.
        while True:
            await asyncio.sleep(_FRESH_S)
            await self.refresh()

    async def task_of(self, job: str) -> tuple[Task, JobState]:
        """The job's task and state.

        Raises:
            JobError: the job is unknown.
            UsageError: its parameters are not its kind's.
        """
        known = self._known.get(job)
        now = time.monotonic()
        if known is None:
            known = await self._looked_up(job)
        elif now - known.checked_at > _FRESH_S:
            known.checked_at = now  # before the await: one look-up serves all that come meanwhile
            state = await self._store.state(job)
            if state is None:
                self._known.pop(job, None)
                raise JobError(f"there is no job {job}")
            known.state = state
        return known.task, known.state

    def _abort(self, job: str) -> None:
        work = self._work.get(job)
        if work is None:
            return
        ended = work.abort()
        if not ended:
            return
        told = self.aborted.setdefault(job, Aborted())
        told.requests += sum(ended)
        told.items += sum(1 for requests in ended if requests)
        while len(self.aborted) > _TOLD_LIMIT:
            del self.aborted[next(iter(self.aborted))]
        log.info("job %s is cancelled: %d requests aborted", job, sum(ended))

    async def _looked_up(self, job: str) -> _Known:
        # A job's first items come all at once: one look-up serves them all. Each with its own
        # would want more connections than the client has, and compile the schema again.
        looking = self._looking.get(job)
        if looking is None:
            looking = asyncio.create_task(self._look_up(job), context=Context())
            self._looking[job] = looking
            looking.add_done_callback(lambda _: self._looking.pop(job, None))
        return await asyncio.shield(looking)

    async def _look_up(self, job: str) -> _Known:
        info = await self._store.get(job)
        known = _Known(self.make(info.spec.kind, info.spec.params), info.state, time.monotonic())
        self._remember(job, known)
        return known

    def task_for(self, kind: str, params: Mapping[str, Any]) -> Task:
        """The task for an item that brings its parameters along."""
        key = f"{kind} {sha256_of(params)}"
        known = self._known.get(key)
        if known is None:
            known = _Known(self.make(kind, params), "open", time.monotonic())
            self._remember(key, known)
        return known.task

    def make(self, kind: str, params: Mapping[str, Any]) -> Task:
        """A new task instance; raises `UsageError` when the parameters are not the kind's."""
        if kind not in self._kinds:
            raise UsageError(f"this worker has no task kind {kind!r}")
        task = self._kinds[kind]
        try:
            return task(task.Params.model_validate(params))
        except ValidationError as error:
            raise UsageError(f"{kind}: the parameters are not valid: {error}") from None

    def _remember(self, key: str, known: _Known) -> None:
        while len(self._known) >= _LIMIT:
            del self._known[next(iter(self._known))]
        self._known[key] = known
