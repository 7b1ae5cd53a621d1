"""Which job a command works on, over the store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import fanout
from fanout import Endpoint, JobError, Record, Settings, UsageError, client
from fanout.cli.run import run_into
from fanout.cli.target import Target
from fanout.cli.work import Work
from fanout.client.jobfile import JobFile
from fanout.outputs import read_records
from fanout.store import WorkerInfo
from fanout.testing import MemoryStore

pytestmark = pytest.mark.anyio

SETTINGS = Settings(endpoint={"spark": Endpoint(url="http://spark", tier="heavy", concurrency=8)})
SCHEMA = {"type": "object"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client.feeder, "_WINDOW_POLL_S", 0.0)
    monkeypatch.setattr(client.job, "_READ_S", 0.001)
    return tmp_path


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def fo(store: MemoryStore) -> AsyncIterator[fanout.Fanout]:
    await store.report_worker(WorkerInfo("w", "heavy", kinds=("extract",)), 600)
    async with fanout.connect(settings=SETTINGS, store=store) as connected:
        yield connected
        await connected.abandon()


def work(count: int, *, changed: int | None = None, **options: Any) -> Work:
    params = {"schema": options.pop("schema", SCHEMA)}

    def docs() -> list[client.Doc]:
        return ["changed" if n == changed else f"text {n}" for n in range(count)]

    return Work(kind="extract", docs=docs, params=params, window=20, quiet=True, **options)


class Stop(Exception):
    """What ends a run in the middle."""


async def command(
    fo: fanout.Fanout, todo: Work, *, most: int | None = None, said: str = "a", **options: Any
) -> bool:
    """Run a command with a worker beside it, which breaks off after about `most` records."""
    store = fo.store
    assert isinstance(store, MemoryStore)

    async def worker() -> None:
        while True:
            while item := store.take("heavy"):
                assert item.job is not None
                assert item.ordinal is not None
                data = {"said": said, **item.payload}
                state = await store.state(item.job)
                if state == "paused" and await store.release(item.job, item.ordinal):
                    continue
                status: Any = "cancelled" if state == "cancelled" else "ok"
                await store.settle(
                    item.job, item.ordinal, Record(id=item.id, status=status, data=data)
                )
            await asyncio.sleep(0)

    target = Target("out.jsonl", **options)
    write = target.write

    def limited(*arguments: Any) -> None:
        write(*arguments)
        if most is not None and len(list(read_records("out.jsonl"))) >= most:
            raise Stop

    target.write = limited  # type: ignore[method-assign]
    working = asyncio.create_task(worker())
    try:
        async with asyncio.timeout(30):
            _, clean = await run_into(fo, todo, target)
            return clean
    finally:
        target.release()
        working.cancel()


def written() -> dict[int, str]:
    """What was said of each ordinal."""
    records = list(read_records("out.jsonl"))
    assert len({r["ordinal"] for r in records}) == len({r["id"] for r in records}) == len(records)
    return {r["ordinal"]: r["data"]["said"] for r in records}


def job_file() -> JobFile:
    file = JobFile.load("out.jsonl")
    assert file is not None
    return file


def content() -> bytes:
    return Path("out.jsonl").read_bytes()


def absolute() -> str:
    return str(Path("out.jsonl").absolute())


def move_away() -> None:
    Path("out.jsonl").rename("first.jsonl")
    Path("out.jsonl.job").rename("first.jsonl.job")


def let_fail(count: int) -> None:
    lines = Path("out.jsonl").read_text().splitlines()
    broken = [line.replace('"status":"ok"', '"status":"failed"') for line in lines[:count]]
    Path("out.jsonl").write_text("\n".join([*broken, *lines[count:]]) + "\n")


async def broken_off(fo: fanout.Fanout, most: int = 30) -> str:
    with pytest.raises(Stop):
        await command(fo, work(100), most=most)
    file = job_file()
    assert file.state == "open"
    assert await fo.store.state(file.job) == "paused"
    assert most <= len(written()) < 100
    return file.job


async def test_the_same_work_goes_on_under_the_same_id(fo: fanout.Fanout) -> None:
    job = await broken_off(fo)
    assert await command(fo, work(100))
    assert sorted(written()) == list(range(100))
    file = job_file()
    assert (file.job, file.state, file.counts, file.documents) == (
        job,
        "complete",
        {"ok": 100},
        100,
    )
    info = await fo.store.get(job)
    assert (info.done, info.counts.ok, info.output) == (
        True,
        100,
        absolute(),
    )


async def test_an_input_that_has_grown_after_the_end(fo: fanout.Fanout) -> None:
    assert await command(fo, work(30))
    job = job_file().job
    assert await command(fo, work(50), said="b")
    assert written() == {n: "a" if n < 30 else "b" for n in range(50)}
    assert (await fo.store.get(job)).counts.ok == 50


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (
            work(100, schema={"type": "object", "title": "Other"}),
            "the schema differs from what it was made with",
        ),
        (work(100, changed=3), "the input has changed"),
        (work(12), "the input has changed: it holds 12"),
        (work(100, resume="other"), "not of other"),
    ],
)
async def test_other_work_is_refused(fo: fanout.Fanout, now: Work, says: str) -> None:
    job = await broken_off(fo)
    before = content(), await fo.store.get(job)
    with pytest.raises(UsageError, match=says) as caught:
        await command(fo, now)
    assert "--overwrite" in str(caught.value)
    assert (content(), await fo.store.get(job)) == before


@pytest.mark.parametrize(
    "now",
    [
        lambda: work(100, schema={"type": "object", "title": "Other"}, accept_changes=True),
        lambda: work(100, changed=3, accept_changes=True),
    ],
)
async def test_accepted_changes_are_for_what_has_no_record(
    fo: fanout.Fanout, now: Callable[[], Work]
) -> None:
    job = await broken_off(fo)
    done = written()
    assert await command(fo, now(), said="b")
    after = written()
    assert sorted(after) == list(range(100))
    assert {n: after[n] for n in done} == done
    assert {after[n] for n in range(90, 100)} == {"b"}
    file = job_file()
    assert file.job != job
    assert file.previous == [job]
    assert await fo.store.state(job) == "cancelled"
    counts = (await fo.store.get(file.job)).counts
    assert (counts.submitted, counts.ok) == (100, 100)


async def test_a_new_beginning_ends_the_old_job(fo: fanout.Fanout) -> None:
    job = await broken_off(fo)
    assert await command(fo, work(40), said="b", overwrite=True)
    assert written() == dict.fromkeys(range(40), "b")
    assert await fo.store.state(job) == "cancelled"
    assert job_file().job != job


async def test_a_cancelled_job_is_not_gone_on_with(fo: fanout.Fanout) -> None:
    job = await broken_off(fo)
    await fo.store.cancel(job)
    with pytest.raises(UsageError, match="was cancelled"):
        await command(fo, work(100))


async def test_another_output_goes_on_with_a_job(fo: fanout.Fanout) -> None:
    job = await broken_off(fo)
    first = written()
    move_away()
    with pytest.raises(JobError):
        await command(fo, work(100, resume="nope"))
    assert await command(fo, work(100, resume=job), said="b")
    second = written()
    # The last batch of the first was written, and not yet trimmed, when it was broken off.
    assert len(first.keys() & second.keys()) <= 20
    assert first.keys() | second.keys() == set(range(100))
    assert not set(range(20)) & second.keys()
    assert (await fo.store.get(job)).counts.ok == 100


async def test_failed_records_are_done_again_from_the_input(fo: fanout.Fanout) -> None:
    assert await command(fo, work(40))
    let_fail(5)
    assert await command(fo, work(40), said="b", drop=("failed",))
    assert sorted(written().values()) == ["a"] * 35 + ["b"] * 5
    counts = (await fo.store.get(job_file().job)).counts
    assert (counts.submitted, counts.ok) == (40, 40)
