"""The loop's thread and the hooks that run on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from fanout_workers.pool import loop as loops
from fanout_workers.pool import on_loop_start, on_loop_stop, run_on_loop
from fanout_workers.pool.loop import LoopThread

DEADLINE_S = 10.0


@pytest.fixture(autouse=True)
def no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_start_hooks", [])
    monkeypatch.setattr(loops, "_stop_hooks", [])
    monkeypatch.setattr(loops, "_current", None)


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread(on_closed=lambda: None)
    yield thread
    thread.stop()
    assert thread.join(DEADLINE_S)


def stop(thread: LoopThread) -> None:
    thread.stop()
    assert thread.join(DEADLINE_S)


def test_hooks_run_on_one_loop_and_stop_in_reverse(thread: LoopThread) -> None:
    ran: list[tuple[str, asyncio.AbstractEventLoop]] = []
    for name in ("a", "b"):

        async def start_hook(name: str = name) -> None:
            ran.append((f"start {name}", asyncio.get_running_loop()))

        async def stop_hook(name: str = name) -> None:
            ran.append((f"stop {name}", asyncio.get_running_loop()))

        on_loop_start(start_hook)
        on_loop_stop(stop_hook)
    thread.start(lambda: None)
    stop(thread)
    assert [what for what, _ in ran] == ["start a", "start b", "stop b", "stop a"]
    assert len({loop for _, loop in ran}) == 1


def test_a_failing_start_hook_is_raised_and_what_was_opened_is_closed(thread: LoopThread) -> None:
    ran: list[str] = []

    @on_loop_start
    async def fail() -> None:
        raise OSError("no server")

    @on_loop_stop
    async def close() -> None:
        ran.append("closed")

    with pytest.raises(OSError, match="no server"):
        thread.start(lambda: None)
    assert thread.join(DEADLINE_S)
    assert ran == ["closed"]


def test_a_start_that_hangs_can_be_given_up(thread: LoopThread) -> None:
    @on_loop_start
    async def hang() -> None:
        await asyncio.Event().wait()

    def give_up() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        thread.start(give_up, every_s=0.01)
    stop(thread)


def test_run_on_loop_gives_a_future(thread: LoopThread) -> None:
    thread.start(lambda: None)

    async def where() -> str:
        return threading.current_thread().name

    assert run_on_loop(where()).result(DEADLINE_S) == "AsyncPool-loop"


def test_run_on_loop_needs_a_worker() -> None:
    with pytest.raises(RuntimeError, match="no worker"):
        run_on_loop(asyncio.sleep(0))


def test_calls_run_in_order_and_an_error_does_not_stop_them(
    thread: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    thread.start(lambda: None)
    ran: list[int] = []
    done = threading.Event()
    thread.post(lambda: ran.append(1))
    thread.post(lambda: 1 / 0)
    thread.post(lambda: ran.append(2))
    thread.post(done.set)
    assert done.wait(DEADLINE_S)
    assert ran == [1, 2]


def test_background_tasks_end_with_the_loop(thread: LoopThread) -> None:
    ended = threading.Event()

    @on_loop_start
    async def start_background() -> None:
        async def background() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        start_background.task = asyncio.create_task(background())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    thread.start(lambda: None)
    stop(thread)
    assert ended.is_set()
