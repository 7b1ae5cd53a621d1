"""The pool's queue between threads."""

from __future__ import annotations

import select

import pytest

from fanout_workers.pool.mailbox import Bell, Mailbox


def test_wakes_once_a_burst_and_keeps_the_order() -> None:
    rings: list[None] = []
    box: Mailbox[int] = Mailbox(lambda: rings.append(None))
    for item in range(3):
        box.post(item)
    assert box.take() == [0, 1, 2]
    assert len(rings) == 1
    box.post(3)
    assert box.take() == [3]
    assert len(rings) == 2
    assert not box


def test_a_reader_that_is_faster_than_the_waking_is_woken_again() -> None:
    taken: list[int] = []
    box: Mailbox[int] = Mailbox(lambda: taken.extend(box.take()))
    box.post(1)
    box.post(2)
    assert taken == [1, 2]


def test_a_failed_waking_is_tried_again() -> None:
    failures = [RuntimeError("no loop")]

    def wake() -> None:
        if failures:
            raise failures.pop()
        taken.extend(box.take())

    taken: list[int] = []
    box: Mailbox[int] = Mailbox(wake)
    with pytest.raises(RuntimeError):
        box.post(1)
    box.post(2)
    assert taken == [1, 2]


def test_the_bell_rings_until_it_is_silenced() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    assert select.select([bell], [], [], 0)[0] == [bell]
    bell.silence()
    assert select.select([bell], [], [], 0)[0] == []
    bell.close()
    bell.ring()  # nobody is there; no error
