"""Finding task kinds by entry point and by reference."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fanout import PluginError, UnknownTask, registry
from fanout.registry import load_kind, load_kinds

GOOD = """
from pydantic import BaseModel
from fanout import Task

class Kind(Task):
    name = "mine"
    def requests(self, payload): return []
    def validate(self, reply, payload): return None

class Nameless(Kind):
    name = "no spaces"

class WrongParams(Kind):
    Params = dict

just_a_value = 5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a module `fanout_test_kinds`, which is the current one."""
    (tmp_path / "fanout_test_kinds.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("fanout_test_")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def installed(monkeypatch: pytest.MonkeyPatch, **kinds: str) -> None:
    entries = [EntryPoint(name, value, registry.GROUP) for name, value in kinds.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)


@pytest.mark.usefixtures("folder")
def test_a_kind_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    kinds = load_kinds(["fanout_test_kinds:Kind"])
    assert [(name, kind.__name__) for name, kind in kinds.items()] == [("mine", "Kind")]


def test_the_current_folder_comes_last_on_the_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch)
    (folder / "pydantic.py").write_text("raise SystemExit('shadowed')")
    load_kinds(["fanout_test_kinds:Kind"])
    load_kinds(["fanout_test_kinds:Kind"])
    assert sys.path[-1] == str(folder)
    assert sys.path.count(str(folder)) == 1


@pytest.mark.usefixtures("folder")
def test_an_installed_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    installed(monkeypatch, mine="fanout_test_kinds:Kind", broken="fanout_test_nothing:Kind")
    assert load_kind("mine").name == "mine"  # the broken one is not imported
    with pytest.raises(PluginError, match=r"task kind broken \(fanout_test_nothing:Kind\)"):
        load_kind("broken")
    with pytest.raises(PluginError, match="broken"):
        load_kinds()


def test_an_unknown_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, extract="x:Y", review="x:Z")
    with pytest.raises(UnknownTask, match="no task kind 'nope'; installed: extract, review"):
        load_kind("nope")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("fanout_test_kinds", "write module:Kind"),
        ("fanout_test_kinds:", "write module:Kind"),
        (":Kind", "write module:Kind"),
        ("fanout_test_nothing:Kind", "No module named 'fanout_test_nothing'"),
        ("fanout_test_kinds:Nothing", "has no attribute 'Nothing'"),
        ("fanout_test_kinds:just_a_value", "is not a subclass of fanout.Task"),
        ("fanout_test_kinds:Nameless", "has no usable `name`"),
        ("fanout_test_kinds:WrongParams", "must be pydantic models"),
    ],
)
def test_what_is_no_kind_is_refused_by_name(
    reference: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch)
    with pytest.raises(PluginError) as caught:
        load_kinds([reference])
    assert words in str(caught.value)
    assert reference in str(caught.value)


def test_a_kind_that_breaks_on_import_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch)
    (folder / "fanout_test_broken.py").write_text("1 / 0")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        load_kinds(["fanout_test_broken:Kind"])
