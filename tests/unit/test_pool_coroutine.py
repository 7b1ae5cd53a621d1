"""How a job's coroutine ends, and how a soft limit passes through asyncio's own code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from fanout_workers.pool.coroutine import JobCoroutine, SoftLimit


class Run:
    """Notes the end, and has one soft limit to give once it is due."""

    def __init__(self) -> None:
        self.ends: list[tuple[Any, BaseException | None]] = []
        self.due = False

    def take_soft_limit(self) -> SoftLimit | None:
        due, self.due = self.due, False
        return SoftLimit(1.0) if due else None

    def finish(self, value: Any, error: BaseException | None) -> None:
        self.ends.append((value, error))


async def start(run: Run, body: Callable[[], Awaitable[Any]]) -> asyncio.Task[None]:
    async def coroutine() -> Any:
        return await body()

    task: asyncio.Task[None] = asyncio.create_task(JobCoroutine(coroutine(), run))
    await asyncio.sleep(0.01)
    return task


pytestmark = pytest.mark.anyio


async def test_a_value() -> None:
    run = Run()
    await (await start(run, lambda: asyncio.sleep(0, "value")))
    assert run.ends == [("value", None)]


@pytest.mark.parametrize("error", [ValueError(), SystemExit(), asyncio.CancelledError()])
async def test_an_error_reaches_the_run_and_not_asyncio(error: BaseException) -> None:
    async def body() -> None:
        raise error

    run = Run()
    await (await start(run, body))
    assert run.ends == [(None, error)]


async def test_a_cancellation_is_one_unless_a_soft_limit_is_due() -> None:
    run = Run()
    task = await start(run, lambda: asyncio.sleep(60))
    task.cancel()
    await task
    ((_, error),) = run.ends
    assert type(error) is asyncio.CancelledError


async def children(cleaned: list[str]) -> None:
    async def child() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append("child")

    async with asyncio.TaskGroup() as group:
        group.create_task(child())


@pytest.mark.parametrize("how", [children, lambda cleaned: asyncio.wait_for(children(cleaned), 60)])
async def test_a_soft_limit_cancels_children_and_is_caught_as_what_it_is(
    how: Callable[[list[str]], Awaitable[None]],
) -> None:
    cleaned: list[str] = []

    async def body() -> str:
        try:
            await how(cleaned)
        except SoftTimeLimitExceeded:
            await asyncio.sleep(0)  # goes on: it is no cancellation any more
            return "partial"
        return "whole"

    run = Run()
    task = await start(run, body)
    run.due = True
    task.cancel()
    await task
    assert run.ends == [("partial", None)]
    assert cleaned == ["child"]
