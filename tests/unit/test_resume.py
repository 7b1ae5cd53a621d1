"""Going on with a job: over the store in memory, with the crashes played by the test."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import fanout
from fanout import Endpoint, Item, JobError, Record, Settings, UsageError, client
from fanout.client import ChangedInput, Job, Ledger
from fanout.inputs import BadRow
from fanout.store import Checkpoint
from fanout.testing import MemoryStore
from fanout.wire import JobSpec

pytestmark = pytest.mark.anyio

SETTINGS = Settings(endpoint={"spark": Endpoint(url="http://spark", tier="heavy", concurrency=8)})
SPEC = JobSpec(kind="extract", tier="heavy", params={"schema": {"type": "object"}})
BAD = BadRow(id="bad", source="rows:7", line=7, reason="no JSON", raw="{oops")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.feeder, "_WINDOW_POLL_S", 0.0)
    monkeypatch.setattr(client.job, "_READ_S", 0.001)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def fo(store: MemoryStore) -> AsyncIterator[fanout.Fanout]:
    async with fanout.connect(settings=SETTINGS, store=store) as connected:
        yield connected
        await connected.abandon()  # a test that failed must not wait for its documents


async def queued(store: MemoryStore, count: int) -> None:
    """Return when at least so many items are in the queue."""
    async with asyncio.timeout(30):
        while await store.queued("heavy") < count:
            await asyncio.sleep(0)


async def taken(store: MemoryStore) -> Item:
    """The next item of the queue, as a worker has it that has not begun."""
    await queued(store, 1)
    item = store.take("heavy")
    assert item is not None
    return item


def docs(count: int, *, bad: bool = True) -> list[client.Doc]:
    return [BAD if bad and n == 7 else f"text {n}" for n in range(count)]


class Output:
    """What a collector has written, and the items that workers have run."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.records: list[Record] = []
        self.ran: Counter[int] = Counter()
        self.untrimmed = 0

    @property
    def ledger(self) -> Ledger:
        ledger = Ledger()
        for record in self.records:
            assert ledger.add(record.ordinal, record.status), f"twice: {record.id}"
        return ledger

    async def work(self, job: str, most: int | None = None) -> None:
        """Settle up to `most` of what comes; for ever, if None."""
        while most is None or most > 0:
            item = self.store.take("heavy")
            if item is None:
                if most is not None:
                    return
                await asyncio.sleep(0)
                continue
            await self.settle(item)
            most = None if most is None else most - 1

    async def settle(self, item: Item) -> None:
        assert item.job is not None
        assert item.ordinal is not None
        self.ran[item.ordinal] += 1
        await self.store.settle(item.job, item.ordinal, Record(id=item.id, status="ok"))

    async def collect(self, job: Job, *, after_3: Callable[[], None] | None = None) -> None:
        """Write what comes to the end of the job, while a worker runs what is queued."""
        worker = asyncio.create_task(self.work(job.id))
        taken = 0
        try:
            async with asyncio.timeout(30):
                async for batch in job.batches(limit=10):
                    self.records += batch
                    taken += 1
                    if after_3 and taken == 3:
                        after_3()
        finally:
            worker.cancel()

    async def collect_some(self, job: Job, batches: int) -> None:
        """Write some batches and die like a killed client, before the last one is trimmed.

        Items are left in the queue, and records that nobody has read.
        """
        reading = job.batches(limit=5)
        for number in range(batches):
            ends = 5 if number else 7
            await queued(self.store, ends)
            await self.work(job.id, ends)
            batch = await anext(reading)
            self.untrimmed = len(batch)
            self.records += batch
        await queued(self.store, 1)
        await reading.aclose()

    async def check(self, count: int, job: str) -> None:
        assert [r.ordinal for r in sorted(self.records, key=lambda r: r.ordinal or 0)] == list(
            range(count)
        )
        info = await self.store.get(job)
        assert info.done
        assert info.counts.submitted == count
        assert info.counts.settled == count
        assert info.counts.skipped == 1
        assert await self.store.unread(job) == 0


async def abandoned(fo: fanout.Fanout, count: int, window: int, **options: Any) -> Job:
    """A job of `count` documents whose client is about to die."""
    store = fo.store
    await store.create("j", SPEC)
    job = Job(store, "j", SPEC)
    source = client.source.Source(docs(count), "j", "heavy")
    job.feed(source, client.feeder.Window(window), **options)
    return job


async def kill(job: Job) -> None:
    await job._stop_feeding()


@pytest.mark.parametrize("batches", [1, 2, 5, 8])
async def test_a_killed_client_goes_on_where_it_was(
    fo: fanout.Fanout, store: MemoryStore, batches: int
) -> None:
    output = Output(store)
    job = await abandoned(fo, 100, window=20)
    await output.collect_some(job, batches)
    checkpoint = job.checkpoint
    await kill(job)
    ledger = output.ledger
    again = await fo.resume("j", docs(100), window=20, ledger=ledger, checkpoint=checkpoint)
    await output.collect(again)
    await output.check(100, "j")
    assert set(output.ran.values()) == {1}
    assert not again.outstanding


async def test_a_killed_client_without_an_output_of_its_own(
    fo: fanout.Fanout, store: MemoryStore
) -> None:
    output = Output(store)
    job = await abandoned(fo, 100, window=20)
    await output.collect_some(job, 3)
    await kill(job)
    del output.records[-output.untrimmed :]  # the last batch was not trimmed: it comes again
    again = await fo.resume("j", docs(100), window=20)
    await output.collect(again)
    await output.check(100, "j")
    assert set(output.ran.values()) == {1}


async def test_a_store_without_its_data(fo: fanout.Fanout, store: MemoryStore) -> None:
    output = Output(store)
    job = await abandoned(fo, 100, window=20)
    await output.collect_some(job, 3)
    await kill(job)
    running = await taken(store)
    store.lose("j")
    with pytest.raises(JobError, match="no job j"):
        await fo.resume("j", docs(100), window=20)
    again = await fo.resume(
        "j", docs(100), window=20, ledger=output.ledger, spec=SPEC, checkpoint=job.checkpoint
    )
    await output.settle(running)  # by a worker that outlived the store
    await output.collect(again)
    await output.check(100, "j")
    assert (await store.get("j")).spec == SPEC
    assert sum(output.ran.values()) - len(output.ran) <= 20


async def test_a_store_that_forgets_everything_under_a_client(
    fo: fanout.Fanout, store: MemoryStore
) -> None:
    output = Output(store)
    job = await abandoned(fo, 200, window=20)
    await output.collect(job, after_3=lambda: store.lose("j"))
    await output.check(200, "j")


async def test_a_paused_job_keeps_what_has_not_started(
    fo: fanout.Fanout, store: MemoryStore
) -> None:
    output = Output(store)
    job = await abandoned(fo, 100, window=20)
    await output.collect_some(job, 2)
    running = await taken(store)
    await job.pause()
    while item := store.take("heavy"):  # as a worker does that sees the pause
        assert item.ordinal is not None
        assert await store.release("j", item.ordinal)
    info = await store.get("j")
    assert (info.state, info.counts.open, info.done) == ("paused", 1, False)
    again = await fo.resume("j", docs(100), window=20, ledger=output.ledger)
    await output.settle(running)
    await output.collect(again)
    await output.check(100, "j")
    assert set(output.ran.values()) == {1}


async def test_reading_a_paused_job_ends(fo: fanout.Fanout, store: MemoryStore) -> None:
    output = Output(store)
    job = await abandoned(fo, 100, window=20)
    await output.collect_some(job, 2)
    await job.pause()
    while item := store.take("heavy"):
        await store.release("j", item.ordinal or 0)
    await output.collect(await fo.job("j", ledger=output.ledger))
    info = await store.get("j")
    assert (info.state, info.counts.open) == ("paused", 0)
    assert output.ledger.counts.total() == info.counts.settled >= 10


async def test_records_that_come_twice_are_collected_once(
    fo: fanout.Fanout, store: MemoryStore
) -> None:
    job = await fo.submit("extract", ["a", "b"], schema={"type": "object"})
    await job.submitted()
    output = Output(store)
    await output.work(job.id, 2)
    records = store._jobs[job.id].records
    records.extend([(serial + 2, raw) for serial, raw in records])
    assert [r.ordinal async for r in job.records()] == [0, 1]
    assert await store.unread(job.id) == 0


@pytest.mark.parametrize("first", [0, 5, -1])
async def test_a_changed_document_is_refused_before_anything_is_submitted(
    fo: fanout.Fanout, store: MemoryStore, first: int
) -> None:
    output = Output(store)
    job = await abandoned(fo, 100, window=20)
    await output.collect_some(job, 2)
    await kill(job)
    before = await store.get("j"), await store.queued("heavy")
    changed = docs(100)
    changed[first if first >= 0 else job.checkpoint.count - 1] = "another text"
    with pytest.raises(ChangedInput, match="the input has changed: its first"):
        await fo.resume("j", changed, window=20, ledger=output.ledger, checkpoint=job.checkpoint)
    assert (await store.get("j"), await store.queued("heavy")) == before
    again = await fo.resume("j", changed, window=20, ledger=output.ledger, accept_changes=True)
    await output.collect(again)
    await output.check(100, "j")


async def test_an_older_checkpoint_judges_what_a_lost_store_cannot(
    fo: fanout.Fanout, store: MemoryStore
) -> None:
    output = Output(store)
    job = await abandoned(fo, 100, window=20)
    await output.collect_some(job, 2)
    await kill(job)
    store.lose("j")
    changed = docs(100)
    changed[3] = "another text"
    with pytest.raises(ChangedInput):
        await fo.resume("j", changed, ledger=output.ledger, spec=SPEC, checkpoint=job.checkpoint)


async def test_an_input_that_has_shrunk_is_refused(fo: fanout.Fanout, store: MemoryStore) -> None:
    output = Output(store)
    job = await abandoned(fo, 100, window=20)
    await output.collect_some(job, 2)
    await kill(job)
    with pytest.raises(ChangedInput, match="it holds 12 of the"):
        await fo.resume("j", docs(12), ledger=output.ledger, checkpoint=job.checkpoint)


async def test_an_input_that_has_grown_is_taken(fo: fanout.Fanout, store: MemoryStore) -> None:
    output = Output(store)
    job = await abandoned(fo, 30, window=20)
    await output.collect(job)
    assert (await store.get("j")).done
    again = await fo.resume("j", docs(45), ledger=output.ledger, checkpoint=job.checkpoint)
    await output.collect(again)
    await output.check(45, "j")
    assert set(output.ran.values()) == {1}


async def test_more_without_a_record_than_memory_holds(
    fo: fanout.Fanout, store: MemoryStore
) -> None:
    output = Output(store)
    job = await abandoned(fo, 3000, window=20)
    await output.collect(job)
    output.records = [
        r for r in output.records if r.ordinal in (7, 2000)
    ]  # the rest shall be redone
    ledger, upto = output.ledger, job.checkpoint
    with pytest.raises(UsageError, match="give it as files"):
        await fo.resume("j", docs(3000), window=20, ledger=ledger, checkpoint=upto)
    opened: list[int] = []

    def opens() -> Iterator[client.Doc]:
        opened.append(1)
        return iter(docs(3000))

    again = await fo.resume("j", opens, window=20, ledger=ledger, checkpoint=upto)
    assert len(opened) == 2
    counts = (await store.get("j")).counts
    assert (counts.settled, counts.open <= 20) == (2, True)
    await output.collect(again)
    await output.check(3000, "j")
    assert Counter(output.ran.values()) == {2: 2998, 1: 1}


async def test_a_cancelled_job_does_not_go_on(fo: fanout.Fanout, store: MemoryStore) -> None:
    job = await abandoned(fo, 100, window=20)
    await job.cancel()
    with pytest.raises(JobError, match="cancelled"):
        await fo.resume("j", docs(100))


async def test_the_digest_is_of_the_documents_alone(store: MemoryStore) -> None:
    async def digest(given: list[client.Doc]) -> Checkpoint:
        source = client.source.Source(given, "any", "any")
        while (piece := await source.piece(4)) is not None:
            last = piece.upto
        return last

    same = await digest([{"id": "a", "x": 1, "y": 2}, "b"])
    assert same == await digest([{"y": 2, "x": 1, "id": "a"}, "b"])
    others = [["b", {"id": "a", "x": 1, "y": 2}], [{"id": "a", "x": 1, "y": 3}, "b"], [BAD, "b"]]
    found = [await digest(other) for other in others]
    assert len({one.digest for one in [same, *found]}) == 4


async def test_memory_stays_flat_where_nobody_collects(
    fo: fanout.Fanout, store: MemoryStore
) -> None:
    job = await fo.submit("extract", map(str, range(500)), window=20, schema={"type": "object"})
    worker = asyncio.create_task(Output(store).work(job.id))
    most = 0
    while job.feeding:
        most = max(most, len(job.outstanding))
        await asyncio.sleep(0)
    worker.cancel()
    assert 0 < most <= 40


async def test_a_document_that_no_message_can_hold_is_skipped() -> None:
    source = client.source.Source(["small", "x" * client.source.MOST_BYTES, "last"], "j", "heavy")
    first = await source.piece(99)
    second = await source.piece(99)
    assert first is not None
    assert second is not None
    (small, large), (last,) = first.entries, second.entries
    assert isinstance(small, Item)
    assert isinstance(large, Record)
    assert large.error is not None
    assert (large.status, large.ordinal) == ("skipped", 1)
    assert "larger than 33,554,432 bytes" in large.error.message
    assert last.ordinal == 2
    assert await source.piece(99) is None


@pytest.mark.parametrize("is_async", [False, True])
async def test_large_documents_go_to_redis_a_few_at_a_time(is_async: bool) -> None:
    texts = ["x" * (client.source.PIECE_BYTES // 3)] * 7

    async def given() -> AsyncIterator[str]:
        for text in texts:
            yield text

    source = client.source.Source(given() if is_async else texts, "j", "heavy")
    sizes = []
    while (piece := await source.piece(500)) is not None:
        sizes.append(len(piece.entries))
    assert sizes == [3, 3, 1]
