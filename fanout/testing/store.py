"""An in-memory job store: what Redis does, without Redis."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from fanout.errors import JobError
from fanout.store.base import (
    Batch,
    Counts,
    Decided,
    EndpointInfo,
    JobInfo,
    JobState,
    Records,
    WorkerInfo,
)
from fanout.wire import Item, JobSpec, Record


@dataclass(slots=True)
class _Job:
    spec: JobSpec
    created_at: float
    state: JobState = "open"
    counts: Counter[str] = field(default_factory=Counter)
    next_ordinal: int = 0
    settled: set[int] = field(default_factory=set)
    # Records as JSON with their serial numbers: what cannot be serialised fails here too.
    records: deque[tuple[int, bytes]] = field(default_factory=deque)
    serial: int = 0


class MemoryStore:
    """A `fanout.store.Store` for one event loop.

        store = MemoryStore()
        async with fanout.connect(settings=settings, store=store) as fo:
            job = await fo.submit("extract", docs, schema=Posting)
            while item := store.take("default"):
                await store.settle(job.id, item.ordinal, Record(id=item.id, status="ok"))

    It passes the contract suite that the store on Redis passes.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}
        self._queues: dict[str, deque[Item]] = {}
        self._workers: dict[str, tuple[WorkerInfo, float]] = {}
        self._concurrency: dict[str, int] = {}
        self._auto: dict[str, int] = {}
        self._decisions: dict[str, deque[Decided]] = {}
        self._appended = asyncio.Condition()

    def take(self, tier: str) -> Item | None:
        """The longest waiting item of the tier's queue, removed from it; None if it is empty."""
        queue = self._queues.get(tier)
        return queue.popleft() if queue else None

    async def ping(self) -> None:
        """Return at once."""

    async def create(self, job: str, spec: JobSpec) -> None:
        if job in self._jobs:
            raise JobError(f"there is already a job {job}")
        self._jobs[job] = _Job(spec, time.time())

    async def get(self, job: str) -> JobInfo:
        known = self._known(job)
        return JobInfo(job, known.spec, known.state, Counts(**known.counts), known.created_at)

    async def jobs(self, limit: int = 20) -> Sequence[str]:
        return list(reversed(self._jobs))[:limit]

    async def submit(self, job: str, spec: JobSpec, items: Sequence[Item]) -> None:
        known = self._known(job)
        ordinals = [item.ordinal for item in items if item.ordinal is not None]
        if not ordinals or known.next_ordinal > ordinals[0]:
            return
        known.next_ordinal = ordinals[-1] + 1
        known.counts["submitted"] += len(items)
        self._queues.setdefault(spec.tier, deque()).extend(items)

    async def settle(self, job: str, ordinal: int, record: Record) -> bool:
        return await self._end(job, ordinal, record, submitted=0)

    async def reject(self, job: str, ordinal: int, record: Record) -> bool:
        return await self._end(job, ordinal, record, submitted=1)

    async def _end(self, job: str, ordinal: int, record: Record, *, submitted: int) -> bool:
        raw = record.to_json()
        known = self._jobs.get(job)
        if known is None or ordinal in known.settled:
            return False
        known.settled.add(ordinal)
        known.counts["submitted"] += submitted
        known.counts[record.status] += 1
        known.serial += 1
        known.records.append((known.serial, raw))
        async with self._appended:
            self._appended.notify_all()
        return True

    async def seal(self, job: str) -> None:
        known = self._known(job)
        if known.state == "open":
            known.state = "sealed"

    async def cancel(self, job: str) -> None:
        self._known(job).state = "cancelled"

    async def state(self, job: str) -> JobState | None:
        return self._jobs[job].state if job in self._jobs else None

    async def read(self, job: str, after: str, limit: int, block_s: float) -> Batch:
        if block_s > 0 and not self._after(job, after, 1):
            try:
                async with asyncio.timeout(block_s), self._appended:
                    await self._appended.wait_for(lambda: self._after(job, after, 1))
            except TimeoutError:
                return Batch([], after)
        found = self._after(job, after, limit)
        last = f"{found[-1][0]}-0" if found else after
        return Batch(Records.of(raw for _, raw in found), last)

    def _after(self, job: str, cursor: str, limit: int) -> list[tuple[int, bytes]]:
        if job not in self._jobs:
            return []
        seen = _serial(cursor)
        return [entry for entry in self._jobs[job].records if entry[0] > seen][:limit]

    async def trim(self, job: str, upto: str) -> None:
        records = self._jobs[job].records if job in self._jobs else None
        while records and records[0][0] <= _serial(upto):
            records.popleft()

    async def unread(self, job: str) -> int:
        return len(self._jobs[job].records) if job in self._jobs else 0

    async def report_worker(self, info: WorkerInfo, ttl_s: float) -> None:
        self._workers[info.name] = info, time.monotonic() + ttl_s

    async def forget_worker(self, info: WorkerInfo) -> None:
        self._workers.pop(info.name, None)

    async def workers(self, tier: str | None = None) -> Sequence[WorkerInfo]:
        now = time.monotonic()
        alive = [info for info, until in self._workers.values() if until > now]
        return sorted(
            (info for info in alive if tier in (None, info.tier)), key=lambda info: info.name
        )

    async def queued(self, tier: str) -> int:
        return len(self._queues.get(tier, ()))

    async def endpoint(self, name: str) -> EndpointInfo:
        return EndpointInfo(self._concurrency.get(name), auto=self._auto.get(name))

    async def set_concurrency(self, name: str, concurrency: int | None) -> None:
        if concurrency is None:
            self._concurrency.pop(name, None)
        else:
            self._concurrency[name] = concurrency

    async def steer(self, name: str, decided: Decided) -> None:
        self._auto[name] = decided.n
        self._decisions.setdefault(name, deque(maxlen=500)).appendleft(decided)

    async def decisions(self, name: str, limit: int = 20) -> Sequence[Decided]:
        return list(islice(self._decisions.get(name, ()), limit))

    async def unsteer(self, name: str) -> None:
        self._auto.pop(name, None)

    async def aclose(self) -> None:
        """Keep everything: a client that connects to this store again finds its jobs."""

    def _known(self, job: str) -> _Job:
        if job not in self._jobs:
            raise JobError(f"there is no job {job}")
        return self._jobs[job]


def _serial(cursor: str) -> int:
    return int(cursor.partition("-")[0])
