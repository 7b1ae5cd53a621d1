"""Ending tasks that do not want to end."""

from __future__ import annotations

import asyncio
import gc
import signal

import pytest

from fanout import aio
from fanout.aio import ended


def test_a_program_that_swallows_its_interruption_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fanout.aio._PROGRAM_AGAIN_S", 0.001)
    swallowed = 0

    async def program() -> None:
        nonlocal swallowed
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    with pytest.raises(KeyboardInterrupt):
        aio.run(program())
    assert swallowed == 3


def test_a_program_gives_what_it_returns() -> None:
    async def program() -> int:
        return 7

    assert aio.run(program()) == 7


@pytest.mark.anyio
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


@pytest.mark.anyio
async def test_what_it_raised_is_dropped() -> None:
    async def failing() -> None:
        raise ValueError

    task = asyncio.create_task(failing())
    await asyncio.sleep(0)
    await ended(task)
    assert task.done()


def test_an_interruption_while_the_loop_is_made_waits_until_it_is(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    made, new = [], asyncio.new_event_loop

    def interrupted() -> asyncio.AbstractEventLoop:
        signal.raise_signal(signal.SIGINT)
        made.append(new())
        return made[0]

    async def program() -> None:
        raise AssertionError("it began")

    monkeypatch.setattr(asyncio.events, "new_event_loop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        aio.run(program())
    gc.collect()
    assert made[0].is_closed()
    assert not recwarn.list  # of a coroutine that was never awaited
