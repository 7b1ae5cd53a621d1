"""An in-memory job store: what Redis does, without Redis."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from fanout.errors import JobError
from fanout.store.base import (
    Batch,
    Checkpoint,
    Counts,
    Decided,
    EndpointInfo,
    Forgotten,
    JobInfo,
    JobState,
    Pulse,
    Records,
    Restored,
    WorkerInfo,
)
from fanout.store.bits import bits_of, ordinals_in
from fanout.wire import Item, JobSpec, Record


@dataclass(slots=True)
class _Job:
    spec: JobSpec
    created_at: float
    state: JobState = "open"
    counts: Counter[str] = field(default_factory=Counter)
    input: Checkpoint = field(default_factory=Checkpoint)
    output: str | None = None
    settled: set[int] = field(default_factory=set)
    # The ordinals of the last calls, by what was done: one that is repeated is the same call.
    told: dict[str, list[int]] = field(default_factory=dict)
    # Records as JSON with their serial numbers: what cannot be serialised fails here too.
    records: deque[tuple[int, bytes]] = field(default_factory=deque)
    serial: int = 0
    # Items with a worker, and those that one gave back.
    taken: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    forgotten_at: float | None = None


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
        self._collectors: dict[str, tuple[str, float]] = {}
        self._concurrency: dict[str, int] = {}
        self._auto: dict[str, int] = {}
        self._decisions: dict[str, deque[Decided]] = {}
        self._appended = asyncio.Condition()

    def take(self, tier: str) -> Item | None:
        """The longest waiting item of the tier's queue, removed from it; None if it is empty."""
        queue = self._queues.get(tier)
        if not queue:
            return None
        item = queue.popleft()
        if item.job in self._jobs and item.ordinal is not None:
            self._jobs[item.job].taken.add(item.ordinal)
        return item

    def lose(self, job: str, *, queued: bool = True) -> None:
        """Forget the job as a server does that comes back without its data."""
        self._jobs.pop(job, None)
        for tier, queue in self._queues.items() if queued else ():
            self._queues[tier] = deque(item for item in queue if item.job != job)

    async def ping(self) -> None:
        """Return at once."""

    async def eviction(self) -> str:
        """None: nothing is ever deleted."""
        return ""

    async def create(self, job: str, spec: JobSpec) -> None:
        if job in self._jobs:
            raise JobError(f"there is already a job {job}")
        self._jobs[job] = _Job(spec, time.time())

    async def get(self, job: str) -> JobInfo:
        known = self._known(job)
        return JobInfo(
            job, known.spec, known.state, Counts(**known.counts), known.created_at, known.input,
            known.output,
        )  # fmt: skip

    async def jobs(self, limit: int = 20) -> Sequence[str]:
        self._forget_old()
        return list(reversed(self._jobs))[:limit]

    async def submit(
        self,
        job: str,
        spec: JobSpec,
        items: Sequence[Item],
        *,
        rejected: Sequence[Record] = (),
        upto: Checkpoint | None = None,
    ) -> None:
        if job not in self._jobs:
            raise Forgotten(f"there is no job {job}")
        known = self._jobs[job]
        given: list[Item | Record] = [*items, *rejected]
        ordinals = sorted(each.ordinal for each in given if each.ordinal is not None)
        if not ordinals or known.input.count > ordinals[0]:
            return
        if upto and known.input.count < ordinals[0]:
            raise Forgotten(f"a part of job {job} is lost")
        known.input = upto or Checkpoint(ordinals[-1] + 1)
        for record in rejected:
            assert record.ordinal is not None  # noqa: S101 - the caller's contract
            await self._end(job, record.ordinal, record, submitted=1)
        known.counts["submitted"] += len(items)
        self._queues.setdefault(spec.tier, deque()).extend(items)

    async def settle(self, job: str, ordinal: int, record: Record) -> bool:
        return await self._end(job, ordinal, record, submitted=0)

    async def has_ended(self, job: str, ordinal: int) -> bool:
        known = self._jobs.get(job)
        return known is not None and ordinal in known.settled

    async def reject(self, job: str, ordinal: int, record: Record) -> bool:
        return await self._end(job, ordinal, record, submitted=1)

    async def _end(self, job: str, ordinal: int, record: Record, *, submitted: int) -> bool:
        if record.ordinal is None:
            record = record.model_copy(update={"ordinal": ordinal})
        raw = record.to_json()
        known = self._jobs.get(job)
        if known is None or ordinal in known.settled:
            return False
        known.settled.add(ordinal)
        known.taken.discard(ordinal)
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

    async def pause(self, job: str) -> None:
        info = await self.get(job)
        if info.state != "cancelled" and not info.done:
            self._jobs[job].state = "paused"

    async def cancel(self, job: str) -> None:
        self._known(job).state = "cancelled"

    async def end_queued(self, job: str, record_of: Callable[[Item], Record]) -> int:
        queue = self._queues.get(self._known(job).spec.tier, deque())
        found = [item for item in queue if item.job == job]
        for item in found:
            if item.ordinal is not None:
                await self.settle(job, item.ordinal, record_of(item))
            queue.remove(item)
        return len(found)

    async def release(self, job: str, ordinal: int) -> bool:
        known = self._jobs.get(job)
        if known is None or known.state != "paused":
            return False
        known.taken.discard(ordinal)
        if ordinal not in known.settled | known.dropped:
            known.dropped.add(ordinal)
            known.counts["submitted"] -= 1
        return True

    async def restore(
        self,
        job: str,
        spec: JobSpec,
        upto: Checkpoint,
        written: bytes | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Restored:
        known = self._jobs.setdefault(job, _Job(spec, time.time()))
        if known.state == "cancelled":
            raise JobError(f"job {job} is cancelled, which is final")
        if known.input.count > upto.count:
            raise JobError(f"somebody else has submitted more of job {job} meanwhile")
        known.spec, known.state, known.input, known.forgotten_at = spec, "open", upto, None
        if written is not None:
            known.settled = ordinals_in(written)
            known.counts = Counter(counts or {})
            for entry in tuple(known.records):
                record = Record.model_validate_json(entry[1])
                assert record.ordinal is not None  # noqa: S101 - `_end` has seen to it
                if record.ordinal in known.settled:
                    known.records.remove(entry)
                else:
                    known.settled.add(record.ordinal)
                    known.counts[record.status] += 1
        known.counts["submitted"] = upto.count
        known.told.clear()
        return Restored(bits_of(known.settled), frozenset(known.dropped))

    async def withdraw(self, job: str, ordinals: Collection[int]) -> set[int]:
        known = self._known(job)
        opened = set(ordinals) - known.settled
        if known.told.get("withdrawn") != (told := sorted(ordinals)):
            known.told["withdrawn"] = told
            known.counts["submitted"] -= len(opened)
        known.dropped -= opened
        return opened

    async def resubmit(self, job: str, spec: JobSpec, items: Sequence[Item]) -> None:
        known = self._known(job)
        if known.told.get("resubmitted") == (told := [item.ordinal or 0 for item in items]):
            return
        known.told["resubmitted"] = told
        known.counts["submitted"] += len(items)
        self._queues.setdefault(spec.tier, deque()).extend(
            item for item in items if item.ordinal not in known.settled
        )

    async def missing(self, job: str, tier: str, ordinals: Collection[int]) -> set[int]:
        known = {item.ordinal for item in self._queues.get(tier, ()) if item.job == job}
        if job in self._jobs:
            known |= self._jobs[job].taken | self._jobs[job].settled
        return {ordinal for ordinal in ordinals if ordinal not in known}

    async def pulse(self, job: str) -> Pulse:
        if job not in self._jobs:
            return Pulse(None, None)
        known, counts = self._jobs[job], (await self.get(job)).counts
        return Pulse(None, known.state, known.input.count, counts.submitted, counts.settled)

    async def settled(self, job: str) -> bytes:
        return bits_of(self._jobs[job].settled) if job in self._jobs else b""

    async def keep(self, job: str, seconds: float) -> None:
        if job in self._jobs:
            self._jobs[job].forgotten_at = time.monotonic() + seconds

    async def note_output(self, job: str, output: str) -> None:
        self._known(job).output = output

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

    async def claim(self, job: str, holder: str, ttl_s: float, gone: str = "") -> str:
        now = time.monotonic()
        held, until = self._collectors.get(job, (holder, 0.0))
        if held not in (holder, gone) and until > now:
            return held
        self._collectors[job] = holder, now + ttl_s
        return holder

    async def unclaim(self, job: str, holder: str) -> None:
        if job in self._collectors and self._collectors[job][0] == holder:
            del self._collectors[job]

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

    def _forget_old(self) -> None:
        now = time.monotonic()
        for job, known in tuple(self._jobs.items()):
            if known.forgotten_at is not None and known.forgotten_at <= now:
                del self._jobs[job]

    def _known(self, job: str) -> _Job:
        self._forget_old()
        if job not in self._jobs:
            raise JobError(f"there is no job {job}")
        return self._jobs[job]


def _serial(cursor: str) -> int:
    return int(cursor.partition("-")[0])
