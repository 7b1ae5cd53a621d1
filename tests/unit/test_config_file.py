"""N goes into fanout.toml, and everything else stays as a person wrote it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fanout import ConfigError
from fanout.config_file import config_path, names_endpoint, with_concurrency

TEXT = """\
# our machines
redis = "redis://host"   # shared

[endpoint.spark]
url = "http://spark:8000"
concurrency   = 64  # by guess
extra = {top_p = 0.9}

[endpoint."b.2"]
url = "http://b:8000"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "fanout.toml"
    path.write_text(TEXT)
    return path


def test_a_number_is_replaced_in_its_place(path: Path) -> None:
    text, change = with_concurrency(path, "spark", 256)
    assert text == TEXT.replace("concurrency   = 64  # by guess", "concurrency   = 256  # by guess")
    assert change.lines() == [
        f"{path}: [endpoint.spark]",
        "- concurrency = 64",
        "+ concurrency = 256",
    ]
    assert path.read_text() == TEXT


def test_a_number_that_was_not_there_is_added(path: Path) -> None:
    text, change = with_concurrency(path, "b.2", 8)
    assert text == TEXT + "concurrency = 8\n"
    assert change.lines() == [f"{path}: [endpoint.b.2]", "+ concurrency = 8"]


def test_auto_gives_way_to_a_number(path: Path) -> None:
    path.write_text('[endpoint.x]\nurl = "http://x"\nconcurrency = "auto"\n')
    text, change = with_concurrency(path, "x", 8)
    assert text == '[endpoint.x]\nurl = "http://x"\nconcurrency = 8\n'
    assert change.old == 'concurrency = "auto"'


def test_an_inline_table(path: Path) -> None:
    path.write_text('endpoint = {x = {url = "http://x"}}\n')
    text, _ = with_concurrency(path, "x", 8)
    assert tomllib.loads(text) == {"endpoint": {"x": {"url": "http://x", "concurrency": 8}}}
    assert len(text.splitlines()) == 1


def test_what_cannot_be_changed(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no endpoint 'other'"):
        with_concurrency(path, "other", 8)
    path.write_text("[endpoint.x\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        with_concurrency(path, "x", 8)
    with pytest.raises(ConfigError, match="cannot read"):
        with_concurrency(tmp_path / "missing.toml", "x", 8)


def test_which_file_names_an_endpoint(path: Path, tmp_path: Path) -> None:
    assert names_endpoint(path, "spark")
    assert not names_endpoint(path, "other")
    assert not names_endpoint(tmp_path / "missing.toml", "spark")


def test_the_file_is_the_one_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FANOUT_CONFIG", raising=False)
    assert config_path() == Path("fanout.toml")
    monkeypatch.setenv("FANOUT_CONFIG", "other.toml")
    assert config_path() == Path("other.toml")
