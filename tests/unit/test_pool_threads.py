"""The pool's threads for synchronous tasks."""

from __future__ import annotations

import threading

from fanout_workers.pool.threads import Threads

DEADLINE_S = 10.0


def hold(threads: Threads) -> tuple[threading.Event, threading.Event]:
    """Submit a call that has begun when the first event is set and ends with the second."""
    begun, release = threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        release.wait(DEADLINE_S)

    threads.submit(call)
    return begun, release


def test_calls_beyond_the_limit_wait_their_turn() -> None:
    threads = Threads(1)
    begun, release = hold(threads)
    second, release_second = hold(threads)
    assert begun.wait(DEADLINE_S)
    assert threads.count == 1
    assert not second.is_set()
    release.set()
    assert second.wait(DEADLINE_S)
    release_second.set()
    threads.stop()


def test_a_call_that_was_given_up_does_not_hold_up_the_others() -> None:
    threads = Threads(1)
    begun, release = hold(threads)
    waiting, release_waiting = hold(threads)
    assert begun.wait(DEADLINE_S)
    threads.replace()
    assert waiting.wait(DEADLINE_S)
    assert threads.count == 2
    threads.restore()
    release.set()
    release_waiting.set()
    last, release_last = hold(threads)
    assert last.wait(DEADLINE_S)
    release_last.set()
    threads.stop()


def test_an_idle_thread_is_used_again() -> None:
    threads = Threads(8)
    for _ in range(3):
        done = threading.Event()
        threads.submit(done.set)
        assert done.wait(DEADLINE_S)
    assert threads.count <= 3
    threads.stop()
