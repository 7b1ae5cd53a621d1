"""The client over the store in memory, with a worker played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

import fanout
from fanout import (
    ChatRequest,
    ConfigError,
    Endpoint,
    Job,
    JobError,
    Record,
    Reply,
    Settings,
    Task,
    Unavailable,
    UsageError,
    client,
)
from fanout.inputs import BadRow, Document
from fanout.store import Batch
from fanout.testing import MemoryStore
from fanout.wire import Status

pytestmark = pytest.mark.anyio

SETTINGS = Settings(endpoint={"spark": Endpoint(url="http://spark", tier="heavy", concurrency=8)})


class Echo(Task):
    name = "echo"

    class Params(BaseModel):
        words: int = 3
        tone: str | None = None

        @field_validator("words")
        @classmethod
        def _positive(cls, value: int) -> int:
            if value < 1:
                raise ValueError("at least one word is needed")
            return value

    def requests(self, payload: Any) -> Sequence[ChatRequest]:
        return []

    def validate(self, reply: Reply, payload: Any) -> Any:
        return None


class WatchedStore(MemoryStore):
    """Knows the most that was ever open, or open and unread, and the batches sent."""

    def __init__(self) -> None:
        super().__init__()
        self.open_max = 0
        self.held_max = 0
        self.batches: list[int] = []

    async def submit(self, job: str, spec: Any, items: Any, **upto: Any) -> None:
        await super().submit(job, spec, items, **upto)
        self.batches.append(len(items))
        self.open_max = max(self.open_max, (await self.get(job)).counts.open)
        self.held_max = max(
            self.held_max, (await self.get(job)).counts.open + await self.unread(job)
        )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.connection, "load_kind", {"echo": Echo}.__getitem__)
    monkeypatch.setattr(client.feeder, "_WINDOW_POLL_S", 0.0)
    monkeypatch.setattr(client.job, "_READ_S", 0.001)


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture
async def fo(store: WatchedStore) -> AsyncIterator[fanout.Fanout]:
    async with fanout.connect(settings=SETTINGS, store=store) as connected:
        yield connected


async def work(store: MemoryStore, job: str) -> None:
    """Settle whatever comes, until cancelled."""
    while True:
        while item := store.take("heavy"):
            assert item.ordinal is not None
            status: Status = "cancelled" if await store.state(job) == "cancelled" else "ok"
            await store.settle(
                job, item.ordinal, Record(id=item.id, status=status, data=item.payload)
            )
        await asyncio.sleep(0)


async def collect(store: MemoryStore, job: Job) -> list[Record]:
    worker = asyncio.create_task(work(store, job.id))
    try:
        async with asyncio.timeout(30):
            return [record async for record in job.records()]
    finally:
        worker.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


async def test_every_document_comes_back_once(fo: fanout.Fanout, store: WatchedStore) -> None:
    job = await fo.submit("echo", (f"text {n}" for n in range(1234)), words=5)
    records = await collect(store, job)
    assert [record.id for record in records] == [str(n) for n in range(1234)]
    assert records[7].data == {"text": "text 7"}
    info = await job.info()
    assert (info.state, info.done, info.counts.ok) == ("sealed", True, 1234)
    assert (info.spec.kind, info.spec.tier, info.spec.params) == ("echo", "heavy", {"words": 5})
    assert await store.unread(job.id) == 0


async def test_all_forms_of_documents(fo: fanout.Fanout, store: WatchedStore) -> None:
    docs: list[client.Doc] = [
        "plain",
        {"id": "own", "text": "x", "lang": "de"},
        {"text": "y"},
        {"id": 17, "text": "z"},
        Document(id="d1", text="t", meta={"page": 3}, source="a.txt"),
        Document(id="d2", text="t", meta={}, source="b.txt"),
    ]
    records = await collect(store, await fo.submit("echo", docs))
    assert {record.id: record.data for record in records} == {
        "0": {"text": "plain"},
        "own": {"text": "x", "lang": "de"},
        "2": {"text": "y"},
        "17": {"text": "z"},
        "d1": {"text": "t", "meta": {"page": 3}},
        "d2": {"text": "t"},
    }


async def test_documents_from_an_asynchronous_source(
    fo: fanout.Fanout, store: WatchedStore
) -> None:
    async def docs() -> AsyncIterator[str]:
        for n in range(37):
            await asyncio.sleep(0)
            yield str(n)

    assert len(await collect(store, await fo.submit("echo", docs(), window=10))) == 37


async def test_no_documents(fo: fanout.Fanout, store: WatchedStore) -> None:
    job = await fo.submit("echo", [])
    assert await collect(store, job) == []
    assert (await job.info()).done


async def test_a_row_that_cannot_be_read_is_skipped_and_counted(
    fo: fanout.Fanout, store: WatchedStore
) -> None:
    bad = BadRow(id="rows:2", source="rows.jsonl:2", line=2, reason="no JSON", raw="{oops")
    job = await fo.submit("echo", ["a", bad, "b"])
    records = {record.id: record for record in await collect(store, job)}
    assert set(records) == {"0", "rows:2", "2"}
    skipped = records["rows:2"]
    assert skipped.status == "skipped"
    assert skipped.error is not None
    assert skipped.error.kind == "input"
    assert skipped.error.message == "rows.jsonl:2: no JSON"
    assert skipped.error.raw == "{oops"
    assert skipped.tier == "heavy"
    counts = (await job.info()).counts
    assert (counts.submitted, counts.ok, counts.skipped) == (3, 2, 1)


@pytest.mark.parametrize("window", [1, 2, 7, 64, 1000])
async def test_the_window_is_never_exceeded(
    fo: fanout.Fanout, store: WatchedStore, window: int
) -> None:
    job = await fo.submit("echo", map(str, range(300)), window=window)
    assert len(await collect(store, job)) == 300
    assert store.open_max <= window
    assert store.held_max <= window


async def test_the_window_is_refilled_before_it_is_empty(
    fo: fanout.Fanout, store: WatchedStore
) -> None:
    job = await fo.submit("echo", map(str, range(300)), window=64)
    await until(lambda: store.open_max == 64)
    for _ in range(16):
        item = store.take("heavy")
        assert item is not None
        assert item.ordinal is not None
        await store.settle(job.id, item.ordinal, Record(id=item.id, status="ok"))
    await until(lambda: sum(store.batches) == 80)
    assert len(await collect(store, job)) == 300


async def test_documents_are_read_lazily(fo: fanout.Fanout, store: WatchedStore) -> None:
    taken: list[int] = []

    def docs() -> Iterator[str]:
        for n in range(10_000):
            taken.append(n)
            yield "x"

    job = await fo.submit("echo", docs(), window=20)
    await until(lambda: store.open_max == 20)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(taken) <= 30
    assert store.open_max == 20
    await job.cancel()


async def test_unread_records_count_for_the_window_while_somebody_collects(
    fo: fanout.Fanout, store: WatchedStore
) -> None:
    async def docs() -> AsyncIterator[str]:
        for n in range(100):
            yield str(n)

    job = await fo.submit("echo", docs(), window=10)
    worker = asyncio.create_task(work(store, job.id))
    batches = job.batches(limit=1)
    await anext(batches)
    for _ in range(1000):
        await asyncio.sleep(0)
    submitted = (await job.info()).counts.submitted
    assert submitted < 50
    async with asyncio.timeout(30):
        assert sum([len(batch) async for batch in batches]) == 99
    worker.cancel()


async def test_a_batch_is_forgotten_when_the_next_is_asked_for(
    fo: fanout.Fanout, store: WatchedStore
) -> None:
    job = await fo.submit("echo", map(str, range(4)))
    await job.submitted()
    worker = asyncio.create_task(work(store, job.id))
    info = await job.wait()
    assert info.counts.ok == 4
    worker.cancel()
    batches = job.batches(limit=2)
    assert len(await anext(batches)) == 2
    assert await store.unread(job.id) == 4
    assert len(await anext(batches)) == 2
    assert await store.unread(job.id) == 2
    with pytest.raises(StopAsyncIteration):
        await anext(batches)
    assert await store.unread(job.id) == 0


async def test_what_was_not_taken_is_there_for_the_next_reader(
    fo: fanout.Fanout, store: WatchedStore
) -> None:
    job = await fo.submit("echo", map(str, range(4)))
    worker = asyncio.create_task(work(store, job.id))
    await job.wait()
    worker.cancel()
    batches = job.batches(limit=3)
    await anext(batches)
    await batches.aclose()
    again = await fo.job(job.id)
    assert again.spec == job.spec
    assert [record.id async for record in again.records()] == ["0", "1", "2", "3"]


async def test_an_error_of_the_source_reaches_who_reads_the_records(
    fo: fanout.Fanout, store: WatchedStore
) -> None:
    def docs() -> Iterator[str]:
        yield "a"
        raise OSError("the disk is gone")

    job = await fo.submit("echo", docs())
    with pytest.raises(OSError, match="the disk is gone"):
        await collect(store, job)
    with pytest.raises(OSError, match="the disk is gone"):
        await job.submitted()
    info = await job.info()
    assert (info.state, info.done) == ("cancelled", True)


async def test_cancel_stops_the_feeding_and_what_waits(
    fo: fanout.Fanout, store: WatchedStore
) -> None:
    job = await fo.submit("echo", map(str, range(1000)), window=10)
    await until(lambda: store.open_max == 10)
    await job.cancel()
    records = await collect(store, job)
    assert {record.status for record in records} == {"cancelled"}
    info = await job.info()
    assert (info.state, info.done, info.counts.submitted) == ("cancelled", True, len(records))
    assert len(records) <= 10


async def test_a_job_cancelled_elsewhere_is_not_fed_any_more(
    fo: fanout.Fanout, store: WatchedStore
) -> None:
    job = await fo.submit("echo", map(str, range(1000)), window=10)
    await until(lambda: store.open_max == 10)
    await (await fo.job(job.id)).cancel()
    worker = asyncio.create_task(work(store, job.id))
    async with asyncio.timeout(30):
        await job.submitted()
        info = await job.wait()
    worker.cancel()
    assert info.state == "cancelled"
    assert info.counts.submitted <= 20


async def test_who_waits_for_the_feeding_is_not_cancelled_with_it(
    fo: fanout.Fanout, store: WatchedStore
) -> None:
    job = await fo.submit("echo", map(str, range(1000)), window=10)
    waiting = asyncio.create_task(job.submitted())
    await until(lambda: store.open_max == 10)
    await job.cancel()
    await waiting
    await job.submitted()


async def test_feeding_goes_on_without_a_reader_and_leaving_the_block_waits_for_it(
    store: WatchedStore,
) -> None:
    async with fanout.connect(settings=SETTINGS, store=store) as fo:
        job = await fo.submit("echo", map(str, range(200)), window=10)
        worker = asyncio.create_task(work(store, job.id))
        batches = job.batches()
        await anext(batches)
        await batches.aclose()
        assert (await job.info()).state == "open"
    worker.cancel()
    info = await job.info()
    assert (info.state, info.counts.submitted) == ("sealed", 200)


async def test_an_exception_in_the_block_cancels_what_is_not_submitted(
    store: WatchedStore,
) -> None:
    async def leave() -> None:
        async with fanout.connect(settings=SETTINGS, store=store) as fo:
            await fo.submit("echo", map(str, range(1000)), window=10)
            await until(lambda: store.open_max == 10)
            raise KeyError

    with pytest.raises(KeyError):
        await leave()
    assert [await store.state(job) for job in await store.jobs()] == ["cancelled"]


async def test_an_error_of_the_source_that_nobody_saw_leaves_the_block(
    store: WatchedStore,
) -> None:
    def docs() -> Iterator[str]:
        yield "a"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        async with fanout.connect(settings=SETTINGS, store=store) as fo:
            await fo.submit("echo", docs())


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"words": "many"}, "echo: words: Input should be a valid integer"),
        ({"words": 0}, "echo: words: at least one word is needed"),
    ],
)
async def test_wrong_parameters_are_refused_before_a_job_is_made(
    fo: fanout.Fanout, store: WatchedStore, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        await fo.submit("echo", ["a"], **params)
    assert str(caught.value).startswith(words)
    assert list(await store.jobs()) == []


async def test_a_wrong_tier_is_refused_before_a_job_is_made(
    fo: fanout.Fanout, store: WatchedStore
) -> None:
    with pytest.raises(ConfigError, match="no endpoint serves tier 'light'"):
        await fo.submit("echo", ["a"], tier="light")
    assert list(await store.jobs()) == []


async def test_a_job_id_of_one_s_own(fo: fanout.Fanout) -> None:
    job = await fo.submit("echo", [], job_id="mine", results=True)
    assert (job.id, (await fo.job("mine")).spec.results) == ("mine", True)
    with pytest.raises(JobError, match="already a job mine"):
        await fo.submit("echo", [], job_id="mine")
    with pytest.raises(JobError, match="no job other"):
        await fo.job("other")


async def test_made_up_job_ids_can_be_typed_and_sorted(fo: fanout.Fanout) -> None:
    made = (await fo.submit("echo", [])).id
    assert len(made) == len("20260422-153001-1f9c")
    assert len({client.new_job_id() for _ in range(20)}) > 1


async def test_the_default_window_grows_with_an_n_that_is_set_at_run_time(
    fo: fanout.Fanout, store: WatchedStore
) -> None:
    job = await fo.submit("echo", map(str, range(3000)))
    await until(lambda: store.open_max == 1024)
    (endpoint,) = fo.settings.endpoint.values()
    await store.set_concurrency(endpoint.name, 500)
    for _ in range(store.batches[0]):  # makes room for one batch; the next find more
        item = store.take("heavy")
        assert item is not None
        assert item.ordinal is not None
        await store.settle(job.id, item.ordinal, Record(id=item.id, status="ok"))
    await until(lambda: store.open_max > 1500)
    await collect(store, job)
    assert store.open_max <= 2000


async def test_the_default_window_follows_from_the_endpoints() -> None:
    def window_of(concurrency: int, window: int | None = None) -> int:
        endpoint = Endpoint(url="http://a", concurrency=concurrency)
        return fanout.Fanout(
            Settings(endpoint={"a": endpoint}, window=window), MemoryStore()
        )._window("default")

    assert (window_of(8), window_of(1000), window_of(8, 5)) == (1024, 4000, 5)


async def test_a_store_that_goes_away_while_feeding_is_told(
    fo: fanout.Fanout, store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*arguments: Any, **upto: Any) -> Batch:
        raise Unavailable("Redis does not answer")

    monkeypatch.setattr(store, "submit", away)
    job = await fo.submit("echo", ["a"])
    with pytest.raises(Unavailable):
        await collect(store, job)


def test_the_blocking_twin(store: WatchedStore) -> None:
    with fanout.sync.connect(settings=SETTINGS, store=store) as fo:
        portal = fo._portal
        job = fo.submit("echo", (f"t{n}" for n in range(50)), window=8, words=2)
        worker = portal.start_task_soon(work, store, job.id)
        assert [record.data["text"] for record in job.records()] == [f"t{n}" for n in range(50)]
        worker.cancel()
        with pytest.raises(UsageError):
            fo.submit("echo", [], words=0)


def test_the_blocking_twin_left_early(store: WatchedStore) -> None:
    with fanout.sync.connect(settings=SETTINGS, store=store) as fo:
        job = fo.submit("echo", (f"t{n}" for n in range(500)), window=8)
        worker = fo._portal.start_task_soon(work, store, job.id)
        records = job.records()
        assert next(records).id == "0"
        records.close()  # type: ignore[attr-defined]  # a generator
        fo._portal.call(job._job.submitted)  # the rest goes on without a reader
        assert fo._portal.call(job._job.info).counts.submitted == 500
        worker.cancel()
