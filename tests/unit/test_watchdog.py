"""When a watchdog barks: by looks, never by a clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fanout_workers.watchdog import LOOKS, Pulse, Watchdog


class Scene:
    def __init__(self) -> None:
        self.fault: dict[str, str | None] = {"a": None, "b": None}
        self.barked: list[tuple[str, str]] = []
        self.dog = Watchdog(
            {name: lambda name=name: self.fault[name] for name in self.fault},  # type: ignore[misc]
            lambda name, fault: self.barked.append((name, fault)),
        )

    def look(self, times: int) -> bool:
        looks = [self.dog.look() for _ in range(times)]
        return any(looks)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_fault_at_every_look_counts(scene: Scene) -> None:
    scene.fault["b"] = "broken"
    assert not scene.look(LOOKS - 1)
    assert scene.look(1)
    assert scene.barked == [("b", "broken")]


def test_a_single_good_look_is_enough(scene: Scene) -> None:
    for _ in range(3):
        scene.fault["a"] = "broken"
        assert not scene.look(LOOKS - 1)
        scene.fault["a"] = None
        assert not scene.look(1)


def test_different_faults_do_not_add_up(scene: Scene) -> None:
    scene.fault["a"] = "broken"
    assert not scene.look(LOOKS - 1)
    scene.fault.update(a=None, b="broken")
    assert not scene.look(LOOKS - 1)


def test_what_has_never_beaten_is_not_missed() -> None:
    assert [Pulse("it")() for _ in range(3)] == [None, None, None]


def test_what_beats_between_the_looks_is_well() -> None:
    pulse = Pulse("it")
    for _ in range(3):
        pulse.beat()
        assert pulse() is None
    assert pulse() == "it does not go round"
    pulse.beat()
    assert pulse() is None


def test_what_has_to_be_asked_is_asked_at_each_look() -> None:
    asked: list[Callable[[], None]] = []
    pulse = Pulse("it", asked.append)
    assert pulse() is None
    asked[0]()
    assert pulse() is None
    assert len(asked) == 2
    assert pulse() == "it does not go round"


def test_what_is_closed_is_not_asked() -> None:
    def closed(_: Callable[[], None]) -> None:
        raise RuntimeError("closed")

    assert Pulse("it", closed)() is None
