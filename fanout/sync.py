"""The three most used calls for programs without an event loop.

    with fanout.sync.connect() as fo:
        job = fo.submit("extract", docs, schema=Posting)
        for record in job.records():
            ...

Every call runs the asynchronous one on an event loop in a thread of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from fanout import client
from fanout.client import Doc, Docs
from fanout.task import Task
from fanout.wire import Record


class SyncJob:
    """A `fanout.client.Job` whose records are a plain iterator."""

    def __init__(self, portal: BlockingPortal, job: client.Job) -> None:
        self._portal = portal
        self._job = job
        self.id = job.id

    def records(self) -> Iterator[Record]:
        """Every record, in the order in which items end; see `Job.records`."""
        batches = self._job.batches()
        try:
            while batch := self._portal.call(_next, batches):
                yield from batch
        finally:
            self._portal.call(batches.aclose)


class SyncFanout:
    """A connected client whose calls block; made by `connect`."""

    def __init__(self, portal: BlockingPortal, fanout: client.Fanout) -> None:
        self._portal = portal
        self._fanout = fanout

    def submit(self, kind: str | type[Task], docs: Iterable[Doc], **options: Any) -> SyncJob:
        """Start a job; takes what `Fanout.submit` takes, and raises what it raises."""
        job = self._portal.call(partial(self._fanout.submit, kind, docs, **options))
        return SyncJob(self._portal, job)

    def resume(self, job_id: str, docs: Docs, **options: Any) -> SyncJob:
        """Go on with a job; takes what `Fanout.resume` takes, and raises what it raises."""
        job = self._portal.call(partial(self._fanout.resume, job_id, docs, **options))
        return SyncJob(self._portal, job)


async def _next(batches: AsyncIterator[Sequence[Record]]) -> Sequence[Record]:
    try:
        return await anext(batches)
    except StopAsyncIteration:
        return ()


@contextmanager
def connect(redis: str | None = None, **options: Any) -> Iterator[SyncFanout]:
    """A blocking client; takes what `fanout.connect` takes, and raises what it raises."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(client.connect(redis, **options)) as connected,
    ):
        yield SyncFanout(portal, connected)
