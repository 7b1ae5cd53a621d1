"""When a process that ended is started again, and when no more."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from fanout.local.keeper import Keeper, meaning
from fanout.local.processes import LocalError, Process, Stack


class Child:
    """A process that ends when the test says so."""

    def __init__(self, name: str = "worker") -> None:
        self.name = name
        self.log = Path("log")
        self.returncode: int | None = None
        self.starts = 1
        self.broken = False

    @property
    def alive(self) -> bool:
        return self.returncode is None

    def end(self, status: int = 1) -> None:
        self.returncode = status

    def start(self) -> None:
        self.starts += 1
        if self.broken:
            raise LocalError("worker cannot be started")
        self.returncode = None


class Bench:
    def __init__(self, *children: Child, once: tuple[Child, ...] = ()) -> None:
        self.now = 0.0
        self.said: list[str] = []
        stack = Stack()
        stack._processes.extend(cast(list[Process], children))
        self.keeper = Keeper(
            stack, self.said.append, cast(tuple[Process, ...], once), lambda: self.now
        )

    def pass_time(self, seconds: float) -> object:
        """Look each half second; what is given up ends it."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.5
            if given_up := self.keeper.look():
                return given_up
        return None


def test_what_ends_is_started_again_after_a_pause() -> None:
    child, other = Child(), Child("other")
    bench = Bench(child, other)
    bench.pass_time(20)
    child.end(137)
    assert bench.pass_time(0.5) is None
    assert child.starts == 1
    bench.pass_time(0.5)
    assert (child.starts, other.starts) == (2, 1)
    assert "worker ended (by SIGKILL) after 20 s; it is started again in 0.5 s" in bench.said[0]
    assert bench.said[1] == "worker started again (no. 1)"


def test_the_pause_doubles_and_a_long_life_makes_it_short_again() -> None:
    child = Child()
    bench = Bench(child)
    pauses = []
    for _ in range(8):
        bench.pass_time(20)
        child.end()
        ended_at = bench.now
        while not child.alive:
            bench.pass_time(0.5)
        pauses.append(bench.now - ended_at - 0.5)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]
    bench.pass_time(60)
    child.end()
    bench.pass_time(1)
    assert child.alive


def test_what_never_lives_long_is_given_up() -> None:
    child = Child()
    bench = Bench(child)
    for _ in range(4):
        child.end()
        assert bench.pass_time(9) is None
    child.end()
    assert bench.pass_time(30) is child


def test_what_cannot_even_be_started_is_given_up() -> None:
    child = Child()
    bench = Bench(child)
    bench.pass_time(100)
    child.broken = True
    child.end()
    assert bench.pass_time(100) is child
    assert child.starts == 1 + 5


def test_what_is_configured_wrongly_is_given_up_at_once() -> None:
    child = Child()
    bench = Bench(child)
    bench.pass_time(1000)
    child.end(2)
    assert bench.pass_time(1) is child
    assert child.starts == 1


def test_what_has_lost_its_data_is_given_up_at_once() -> None:
    child = Child()
    bench = Bench(child, once=(child,))
    bench.pass_time(1000)
    child.end(137)
    assert bench.pass_time(1) is child


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (139, "by SIGSEGV"),
        (75, "status 75: it was stuck"),
        (1, "status 1: with an error"),
        (255, "status 255"),
        (None, "status None"),
    ],
)
def test_an_exit_status_in_words(status: int | None, words: str) -> None:
    assert meaning(status) == words
