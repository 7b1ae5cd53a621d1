"""Ending tasks that do not want to end."""

from __future__ import annotations

import asyncio

import pytest

from fanout.aio import ended

pytestmark = pytest.mark.anyio


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fanout.aio._AGAIN_S", 0.001)
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await ended(task)
    assert (task.cancelled(), swallowed) == (True, 3)


async def test_what_it_raised_is_dropped() -> None:
    async def failing() -> None:
        raise ValueError

    task = asyncio.create_task(failing())
    await asyncio.sleep(0)
    await ended(task)
    assert task.done()
