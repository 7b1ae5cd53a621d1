"""When a command may begin: somebody can do the work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fanout.cli.run import ready
from fanout.errors import Unavailable
from fanout.store import WorkerInfo

pytestmark = pytest.mark.anyio


def fanout_with(*workers: WorkerInfo, eviction: str = "") -> Any:
    async def listed(tier: str) -> list[WorkerInfo]:
        return [worker for worker in workers if worker.tier == tier]

    async def policy() -> str:
        return eviction

    return SimpleNamespace(
        store=SimpleNamespace(workers=listed, eviction=policy),
        settings=SimpleNamespace(redis_name="redis.example:6379"),
    )


def worker(problem: str | None = None, circuit: str = "closed", name: str = "w1") -> WorkerInfo:
    return WorkerInfo(
        name, "default", capacity={"spark": 4}, kinds=("extract",),
        problems={"spark": problem} if problem else {}, circuits={"spark": circuit},
    )  # fmt: skip


async def test_an_endpoint_that_is_well_is_enough() -> None:
    await ready(fanout_with(worker()), "default", "extract")


async def test_a_redis_that_deletes_work_is_refused() -> None:
    with pytest.raises(Unavailable, match=r"allkeys-lru.*noeviction"):
        await ready(fanout_with(worker(), eviction="allkeys-lru"), "default", "extract")


async def test_one_that_is_down_for_all_workers_is_refused() -> None:
    with pytest.raises(Unavailable, match="endpoint spark: refused"):
        await ready(
            fanout_with(worker("refused", "open"), worker("refused", "open", "w2")),
            "default",
            "extract",
        )


async def test_one_that_answers_to_some_worker_is_not() -> None:
    await ready(fanout_with(worker("refused", "open"), worker(name="w2")), "default", "extract")


async def test_one_that_is_being_tried_is_not() -> None:
    await ready(fanout_with(worker("half-open: refused", "half-open")), "default", "extract")


async def test_without_a_worker_of_the_tier_or_the_kind_nothing_begins() -> None:
    with pytest.raises(Unavailable, match="no worker serves tier 'heavy'"):
        await ready(fanout_with(worker()), "heavy", "extract")
    with pytest.raises(Unavailable, match="knows the task kind 'review'"):
        await ready(fanout_with(worker()), "default", "review")
