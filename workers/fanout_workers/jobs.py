"""What a worker has to know of the jobs whose items it runs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fanout import JobError, Task, Unavailable, UsageError
from fanout.aio import ended
from fanout.store import JobState, Store
from fanout.wire import sha256_of

#: How old a job's state may be, in seconds: how long after `cancel` an item may still start.
_FRESH_S = 1.0
#: Jobs remembered at most; a long-lived worker must not grow with every job it has seen.
_LIMIT = 256


@dataclass(slots=True)
class _Known:
    task: Task
    state: JobState
    checked_at: float


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
        self._running: Counter[str] = Counter()
        self._watcher: asyncio.Task[None] | None = None

    @contextmanager
    def running(self, job: str) -> Iterator[None]:
        """Keep the state of a job up to date for as long as the block lasts."""
        self._running[job] += 1
        try:
            yield
        finally:
            self._running[job] -= 1
            if not self._running[job]:
                del self._running[job]

    def wanted(self, job: str, *, fresh: bool = False) -> bool:
        """Whether a `running` job has not been cancelled, as of about a second ago; at once.

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
        for job in tuple(self._running):
            with suppress(JobError, UsageError, Unavailable):  # known as before, until it tells
                await self.task_of(job)

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
