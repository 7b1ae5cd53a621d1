"""Whether a process has ended, by a lock that only its end lets go of."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from fanout.lifeline import Lifeline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "alive"


def test_one_that_lives_is_not_dead_and_nor_is_one_that_nobody_knows(folder: Path) -> None:
    one, other = Lifeline("one/1", folder), Lifeline("other/2", folder)
    one.open()
    other.open()
    assert not other.is_dead("one/1")
    assert not other.is_dead("somebody on another host")
    one.close()
    assert not other.is_dead("one/1")  # a clean end says nothing, and has nothing to say
    other.close()
    assert list(folder.iterdir()) == []


def test_the_end_of_a_process_lets_go_of_the_lock(folder: Path) -> None:
    one, other = Lifeline("one/1", folder), Lifeline("other/2", folder)
    one.open()
    assert one._file is not None
    os.close(one._file)  # as the kernel does at a SIGKILL
    assert other.is_dead("one/1")
    assert other.is_dead("one/1")  # once seen, it is remembered
    assert list(folder.iterdir()) == []


def test_a_folder_of_somebody_else_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with caplog.at_level(logging.WARNING):
        Lifeline("one/1", tmp_path / "link").open()
    assert list((tmp_path / "real").iterdir()) == []
    assert len(caplog.records) == 1
