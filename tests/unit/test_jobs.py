"""What a worker remembers of the jobs in work."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from fanout import ChatRequest, JobError, JobSpec, Reply, Task, UsageError
from fanout.store import JobInfo, JobState
from fanout.testing import MemoryStore
from fanout_workers import jobs
from fanout_workers.jobs import Jobs

pytestmark = pytest.mark.anyio


class Plain(Task):
    name = "plain"

    class Params(BaseModel):
        words: int = 1

    def requests(self, payload: Any) -> Sequence[ChatRequest]:
        return []

    def validate(self, reply: Reply, payload: Any) -> Any:
        return None


class CountingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.deleted = False

    async def get(self, job: str) -> JobInfo:
        self.calls += 1
        await asyncio.sleep(0)
        return await super().get(job)

    async def state(self, job: str) -> JobState | None:
        self.calls += 1
        await asyncio.sleep(0)
        return None if self.deleted else await super().state(job)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def known(store: CountingStore) -> Jobs:
    return Jobs(store, {"plain": Plain})


async def test_a_job_has_one_task_and_is_looked_up_once(store: CountingStore, known: Jobs) -> None:
    await store.create("j", JobSpec(kind="plain", tier="t", params={"words": 4}))
    found = [await known.task_of("j") for _ in range(5)]
    assert len({id(task) for task, _ in found}) == 1
    assert found[0][0].params.words == 4
    assert found[0][1] == "open"
    assert store.calls == 1


async def test_items_that_come_together_share_one_look_up(
    store: CountingStore, known: Jobs
) -> None:
    await store.create("j", JobSpec(kind="plain", tier="t"))
    first = asyncio.create_task(known.task_of("j"))
    found = asyncio.gather(*(known.task_of("j") for _ in range(5)))
    await asyncio.sleep(0)
    first.cancel()  # who started the look-up does not take it away from the others
    assert len({id(task) for task, _ in await found}) == 1
    assert store.calls == 1
    asked = (known.task_of("nope") for _ in range(3))
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(error) for error in errors] == ["there is no job nope"] * 3
    assert store.calls == 2
    assert not known._looking


async def test_a_stale_state_is_looked_up_again_once_for_all(
    store: CountingStore, known: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("j", JobSpec(kind="plain", tier="t"))
    await known.task_of("j")
    await store.cancel("j")
    monkeypatch.setattr(jobs, "_FRESH_S", -1.0)
    assert (await known.task_of("j"))[1] == "cancelled"


async def test_a_job_that_is_gone(
    store: CountingStore, known: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("j", JobSpec(kind="plain", tier="t"))
    await known.task_of("j")
    store.deleted = True
    monkeypatch.setattr(jobs, "_FRESH_S", -1.0)
    asked = await asyncio.gather(*(known.task_of("j") for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in asked] == [JobError] * 3


async def test_what_cannot_be_made_is_refused(store: CountingStore, known: Jobs) -> None:
    await store.create("a", JobSpec(kind="nope", tier="t"))
    await store.create("b", JobSpec(kind="plain", tier="t", params={"words": "x"}))
    with pytest.raises(UsageError, match="this worker has no task kind 'nope'"):
        await known.task_of("a")
    with pytest.raises(UsageError, match="plain: the parameters are not valid"):
        await known.task_of("b")
    with pytest.raises(JobError, match="no job c"):
        await known.task_of("c")


def test_parameters_that_are_equal_share_a_task(known: Jobs) -> None:
    assert known.task_for("plain", {"words": 2}) is known.task_for("plain", {"words": 2})
    assert known.task_for("plain", {"words": 2}) is not known.task_for("plain", {"words": 3})


def test_not_every_job_is_remembered_for_ever(known: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_LIMIT", 3)
    for words in range(10):
        known.task_for("plain", {"words": words})
    assert len(known._known) == 3
