"""When a silence is told of: the clock is the test's."""

from __future__ import annotations

import asyncio
import itertools
import os
import shlex
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import fanout
from fanout import (
    ChatRequest,
    Endpoint,
    Job,
    Record,
    Reply,
    Settings,
    Stall,
    Stalled,
    StallWatch,
    Task,
    Timing,
    UsageError,
)
from fanout.stall.action import Hook, OnStall, environment
from fanout.stall.sight import Cause
from fanout.store import WorkerInfo
from fanout.testing import MemoryStore

pytestmark = pytest.mark.anyio

TIER = "heavy"
WELL = WorkerInfo("w1@a", TIER, {"spark": 0}, {"spark": 8}, ("echo",))
BUSY = WorkerInfo("w1@a", TIER, {"spark": 8}, {"spark": 8}, ("echo",))
#: Nobody listens there: its page is never to be had.
SETTINGS = Settings(
    endpoint={"spark": Endpoint(url="http://127.0.0.1:9", tier=TIER, concurrency=8)}
)


class Echo(Task):
    name = "echo"

    class Params(BaseModel):
        max_tokens: int = 100

    def requests(self, payload: Any) -> Sequence[ChatRequest]:
        return []

    def validate(self, reply: Reply, payload: Any) -> Any:
        return None


class Bench:
    def __init__(self, fo: fanout.Fanout, store: MemoryStore, job: Job) -> None:
        self.store = store
        self.job = job
        self.told: list[Stall] = []
        self.ends: list[float] = []
        self.watch = StallWatch(fo, job, on_stall=self.told.append, on_end=self.ends.append)
        self.began = time.monotonic()

    async def at(self, seconds: float) -> list[str]:
        """What is told when it is looked at so many seconds after the beginning."""
        self.told.clear()
        await self.watch.look(self.began + seconds)
        return [stall.words() for stall in self.told]

    async def end(self, count: int, total_s: float) -> None:
        for _ in range(count):
            item = self.store.take(TIER)
            assert item is not None
            assert item.ordinal is not None
            timing = Timing(total_s=total_s, finished_at=time.time())
            record = Record(id=item.id, status="ok", attempts=1, timing=timing)
            await self.store.settle(self.job.id, item.ordinal, record)


@pytest.fixture
async def fo() -> AsyncIterator[fanout.Fanout]:
    async with fanout.connect(settings=SETTINGS, store=MemoryStore()) as fo:
        yield fo


@pytest.fixture
async def bench(fo: fanout.Fanout) -> Bench:
    assert isinstance(fo.store, MemoryStore)
    job = await fo.submit(Echo, map(str, range(8)))
    await job.submitted()
    return Bench(fo, fo.store, job)


async def test_no_worker(bench: Bench) -> None:
    assert await bench.at(29) == []
    (words,) = await bench.at(36)
    assert words.startswith("no record for 0:3")
    assert "with 8 items open (the first may take 135 s: 100 tokens / 2 tokens/s" in words
    assert "no worker of tier heavy has reported: start one with `fanout worker" in words


async def test_it_is_told_again_when_it_has_become_twice_as_long(bench: Bench) -> None:
    times = [second for second in range(0, 600, 6) if await bench.at(second)]
    assert len(times) == 5
    assert all(1.7 < later / earlier < 2.4 for earlier, later in itertools.pairwise(times))
    assert bench.watch.stall is not None
    assert bench.watch.stall.told == 5


async def test_another_cause_is_told_at_once(bench: Bench) -> None:
    assert await bench.at(36)
    await bench.store.report_worker(WELL, 3600)
    assert await bench.at(45) == []  # but not all the time
    (words,) = await bench.at(69)
    assert "takes nothing from the queue, where 8 messages wait" in words


async def test_slow_work_is_no_stall_until_it_takes_too_long(bench: Bench) -> None:
    await bench.store.report_worker(BUSY, 3600)
    assert [await bench.at(second) for second in (31, 60, 100, 134)] == [[]] * 4
    (words,) = await bench.at(145)
    assert "8 requests are in flight at spark, and none has ended" in words


async def test_what_has_ended_says_how_long_it_may_take(bench: Bench) -> None:
    await bench.store.report_worker(BUSY, 3600)
    batches = bench.watch.batches()
    await bench.end(3, total_s=20.0)
    assert len(await anext(batches)) == 3
    reading = asyncio.ensure_future(anext(batches))
    while len(bench.job.outstanding) > 5:  # the batch is taken when the next one is asked for
        await asyncio.sleep(0)
    bench.began = time.monotonic()
    assert [await bench.at(second) for second in (31, 60, 78)] == [[]] * 3
    (words,) = await bench.at(90)
    assert "with 5 items open (95 % have taken up to 20.0 s each)" in words
    await bench.end(1, total_s=20.0)
    await reading
    assert bench.ends
    assert bench.watch.stall is None
    await batches.aclose()


async def test_nothing_is_told_when_nothing_is_open(bench: Bench) -> None:
    batches = bench.watch.batches()
    await bench.end(8, total_s=0.1)
    await anext(batches)
    with pytest.raises(StopAsyncIteration):
        await anext(batches)
    assert await bench.at(1000) == []


async def test_an_output_that_takes_nothing(bench: Bench) -> None:
    batches = bench.watch.batches()
    await bench.end(2, total_s=0.1)
    await anext(batches)
    bench.began = time.monotonic()
    (words,) = await bench.at(36)
    assert "the output has not taken the last 2 records in 0:3" in words
    await batches.aclose()


async def test_redis_is_away(bench: Bench, fo: fanout.Fanout) -> None:
    fo.patience._is_away("Redis at r does not answer")
    (words,) = await bench.at(36)
    assert "waiting for Redis since" in words
    assert words.endswith("Redis at r does not answer")
    fo.patience._is_back()


async def test_a_job_that_stalls_can_be_left(
    fo: fanout.Fanout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout.stall.watch, "_TICK_S", 0.0)
    job = await fo.submit(Echo, ["a"])
    await job.submitted()

    async def collect() -> None:
        async with StallWatch(fo, job, stop=True) as watch, asyncio.timeout(30):
            watch._moved_at -= 60.0
            async for _ in watch.batches():
                raise AssertionError

    with pytest.raises(Stalled, match="no worker of tier heavy"):
        await collect()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("wait", OnStall()),
        ("exit", OnStall(stop=True)),
        ("sh -c 'echo a b'", OnStall(command=("sh", "-c", "echo a b"))),
    ],
)
def test_the_option(text: str, read: OnStall) -> None:
    assert OnStall.read(text) == read


@pytest.mark.parametrize("text", ["", "  ", "no-such-program-here --x", "sh 'unclosed"])
def test_an_option_that_cannot_be_used(text: str) -> None:
    with pytest.raises(UsageError, match="--on-stall"):
        OnStall.read(text)


STALL = Stall("j1", 61.4, 5, Cause("worker", "none; `$(touch no)`"), "expected")


async def test_the_command_is_told_what_and_runs_once_a_stall(tmp_path: Path) -> None:
    script = tmp_path / "hook.py"
    script.write_text(
        "import os, sys\n"
        "with open(sys.argv[1], 'a') as out:\n"
        "    for name in ('JOB', 'CAUSE', 'OPEN', 'SECONDS'):\n"
        "        print(os.environ['FANOUT_' + name], file=out)\n"
    )
    told: list[str] = []
    out = tmp_path / "out with a space"
    words = shlex.split(f"{sys.executable} {script} {shlex.quote(str(out))}")
    hook = Hook(tuple(words), told.append)
    hook.start(STALL)
    hook.start(STALL)
    hook.start(Stall("j1", 70, 5, STALL.cause, "", told=2))
    assert hook._running is not None
    async with asyncio.timeout(30):
        await hook._running
    assert out.read_text().splitlines() == ["j1", "worker: none; `$(touch no)`", "5", "61"]
    assert told == []
    assert Settings().model_dump(include={"flower"}) == {"flower": None}


async def test_a_command_that_goes_wrong_is_told_of(tmp_path: Path) -> None:
    told: list[str] = []
    for command in (("false",), (str(tmp_path / "gone"),)):
        hook = Hook(command, told.append)
        hook.start(STALL)
        assert hook._running is not None
        async with asyncio.timeout(30):
            await hook._running
    assert told[0] == "the command of --on-stall ended with exit code 1"
    assert told[1].startswith("the command of --on-stall cannot be run: ")


def test_its_environment_does_not_configure_fanout(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(STALL).items():
        monkeypatch.setenv(name, value)
    assert fanout.load_settings().flower is None
    assert "FANOUT_JOB" in os.environ
