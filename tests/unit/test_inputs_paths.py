"""Folders, patterns and files: what is found, in which order, under which ids."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fanout.inputs import BadRow, Document, InputError, count_hint, read_inputs


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "notes/b.txt",
        "notes/a.md",
        "notes/sub/c.TXT",
        "notes/sub/deep/d.md",
        "notes/.hidden.txt",
        "notes/.git/e.txt",
        "notes/data.csv",
        "notes/picture.png",
        "other/a.md",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    (tmp_path / "empty").mkdir()
    return tmp_path


def ids(*paths: str, **options: Any) -> list[str]:
    rows = list(read_inputs(paths, **options))
    assert count_hint(paths, **options) == len(rows)
    return [row.id for row in rows]


def test_a_folder(tree: Path) -> None:
    rows = list(read_inputs(["notes/"]))
    assert rows[0] == Document("a.md", "text of notes/a.md", {}, "notes/a.md")
    assert [row.id for row in rows] == ["a.md", "b.txt", "sub/c.TXT", "sub/deep/d.md"]
    assert next(read_inputs([str(tree / "notes")])).id == "a.md"


def test_the_current_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "notes" / "sub")
    rows = list(read_inputs(["."]))
    assert [(row.id, row.source) for row in rows] == [("c.TXT",) * 2, ("deep/d.md",) * 2]


def test_include_and_exclude(tree: Path) -> None:
    assert ids("notes", include=["*.md"]) == ["a.md", "sub/deep/d.md"]
    assert ids("notes", include=["sub/*"]) == ["sub/c.TXT", "sub/deep/d.md"]
    assert ids("notes", exclude=["deep", "b.*"]) == ["a.md", "sub/c.TXT"]
    assert ids("notes", include=["*.md"], exclude=["sub"]) == ["a.md"]
    with pytest.raises(InputError, match="--include and --exclude let through"):
        read_inputs(["notes"], include=["*.rst"])


def test_two_folders_keep_their_names_apart(tree: Path) -> None:
    assert ids("notes", "other", exclude=["sub", "b.txt"]) == ["notes/a.md", "other/a.md"]


def test_what_is_named_twice_is_read_once(tree: Path) -> None:
    assert ids("notes/a.md", "./notes/a.md", str(tree / "notes/a.md")) == ["a.md"]
    rows = list(read_inputs(["notes", "notes/b.txt", "notes/sub", "notes"]))
    assert sorted(row.source for row in rows) == [
        "notes/a.md",
        "notes/b.txt",
        "notes/sub/c.TXT",
        "notes/sub/deep/d.md",
    ]


def test_files_of_one_name_get_their_paths(tree: Path) -> None:
    assert ids("notes/a.md", "other/a.md", "notes/b.txt") == ["notes/a.md", "other/a.md", "b.txt"]
    for folder in ("notes", "other"):
        (tree / folder / "d.jsonl").write_text('{"text": "x"}\n')
    assert ids("notes/d.jsonl", "other/d.jsonl") == ["notes/d.jsonl:1", "other/d.jsonl:1"]


def test_patterns(tree: Path) -> None:
    assert ids("notes/*.md") == ["a.md"]
    assert ids("notes/**/*.md") == ["a.md", "sub/deep/d.md"]
    assert ids(f"{tree}/notes/**/*.md") == ["a.md", "sub/deep/d.md"]
    assert ids("*/a.md") == ["notes/a.md", "other/a.md"]
    assert ids("*/a.md", exclude=["other/*"]) == ["notes/a.md"]
    with pytest.raises(InputError, match=r"picture\.png has a suffix that cannot be read"):
        read_inputs(["notes/*"], exclude=["data.csv"])


def test_a_file_whose_name_looks_like_a_pattern(tree: Path) -> None:
    (tree / "a[1].txt").write_text("x")
    assert ids("a[1].txt") == ["a[1].txt"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("missing.jsonl", "missing.jsonl does not exist"),
        ("missing/a.txt", "missing/a.txt does not exist"),
        ("notes/a.md/b.txt", "cannot be read"),
        ("notes/picture.png", "has a suffix that cannot be read"),
        ("docs.json", "jq -c"),
        ("plain", "has a suffix that cannot be read"),
        ("a.txt.gz", "has a suffix that cannot be read"),
        ("*.nothing", "no file matches"),
        ("empty", "holds no .txt or .md file$"),
        ("empty/*", "no file matches"),
        ("pipe.jsonl", "is not a file"),
    ],
)
def test_paths_that_cannot_be_read_are_told_before_the_first_row(
    tree: Path, path: str, told: str
) -> None:
    for name in ("docs.json", "plain", "a.txt.gz"):
        (tree / name).write_text("[]")
    os.mkfifo(tree / "pipe.jsonl")
    with pytest.raises(InputError, match=told) as caught:
        read_inputs(["notes/a.md", path])
    assert "\n" not in str(caught.value)


def test_no_input() -> None:
    with pytest.raises(InputError, match="no input"):
        read_inputs([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tree: Path) -> None:
    (tree / "notes/a.md").chmod(0)
    with pytest.raises(InputError, match="permission denied"):
        read_inputs(["notes/a.md"])


def test_one_broken_file_of_a_folder_is_a_bad_row(tree: Path) -> None:
    (tree / "notes/b.txt").write_bytes(b"ok \xff")
    (tree / "notes/blank.txt").write_text(" \n")
    (tree / "notes/bom.txt").write_text("\ufeffx")
    (tree / "notes/large.txt").write_text("x" * 101)
    (tree / "notes/link.txt").symlink_to("nowhere")
    os.mkfifo(tree / "notes/pipe.txt")
    rows = list(read_inputs(["notes"], exclude=["sub"], max_bytes=100))
    assert [row.text for row in rows if isinstance(row, Document)] == ["text of notes/a.md", "x"]
    assert [(row.id, row.reason) for row in rows if isinstance(row, BadRow)] == [
        ("b.txt", "invalid UTF-8 at byte 4"),
        ("blank.txt", "the file is blank"),
        ("large.txt", "larger than 100 bytes"),
        ("link.txt", "the file cannot be read: No such file or directory"),
        ("pipe.txt", "not a regular file"),
    ]
    assert {row.line for row in rows if isinstance(row, BadRow)} == {None}


def test_a_link_that_leads_out_of_the_folder_is_not_read(tree: Path) -> None:
    (tree / "secret.txt").write_text("not ours")
    (tree / "notes/out.txt").symlink_to("../secret.txt")
    (tree / "notes/in.txt").symlink_to("a.md")
    rows = {row.id: row for row in read_inputs(["notes"], exclude=["sub"])}
    assert isinstance(rows["in.txt"], Document)
    assert isinstance(rows["out.txt"], BadRow)
    assert rows["out.txt"].reason == "it is a link that leads out of the folder"
    (named,) = read_inputs(["notes/out.txt"])
    assert isinstance(named, Document)


def test_a_folder_inside_that_cannot_be_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    rows = list(read_inputs(["notes"]))
    assert [row.id for row in rows] == ["a.md", "b.txt", "sub"]
    assert isinstance(rows[2], BadRow)
    assert rows[2].reason == "the folder cannot be read: Permission denied"


def test_a_folder_that_links_to_itself_is_walked_once(tree: Path) -> None:
    (tree / "notes/loop").symlink_to(tree / "notes")
    assert len(ids("notes")) == 4


def test_count_hints(tree: Path) -> None:
    (tree / "a.jsonl").write_text('"a"\n"b"')
    (tree / "b.csv").write_text('text\n"x\ny"\nz\n')
    (tree / "header.csv").write_text("text")
    (tree / "none.jsonl").write_text("")
    assert count_hint(["a.jsonl"]) == 2
    assert count_hint(["b.csv"]) == 2
    assert count_hint(["header.csv", "none.jsonl"]) == 0
    assert count_hint(["a.jsonl", "b.csv", "notes", "other/a.md"]) == 9
    assert count_hint(["a.jsonl", "-"]) is None
    with pytest.raises(InputError):
        count_hint(["missing.jsonl"])


def test_no_hint_for_files_that_take_long_to_count(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "a.jsonl").write_text('"a"\n"b"')
    monkeypatch.setattr("fanout.inputs.count._COUNTED_BYTES", 3)
    assert count_hint(["a.jsonl"]) is None


def test_quotes_over_the_blocks_of_a_count(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "b.csv").write_text('text\n"x\ny ""q""\n"\nz\n')
    for size in range(1, 8):
        monkeypatch.setattr("fanout.inputs.count._BLOCK", size)
        assert count_hint(["b.csv"]) == 2
