"""From the paths of a command line to what is read; everything is checked before the first row."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from fanout.inputs.document import InputError

Format = Literal["jsonl", "csv", "tsv", "parquet", "text"]

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
#: Said of a file that `leads_out`.
LEADS_OUT = "it is a link that leads out of the folder"
_PACKED: tuple[Format, ...] = ("jsonl", "csv", "tsv")


@dataclass(frozen=True, slots=True)
class File:
    """One file.

    Attributes:
        path: as given, for opening and for people.
        name: what ids are made from: short where that is clear, else the path.
        format: how to read it.
        packed: gzip.
    """

    path: str
    name: str
    format: Format
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of text files, walked while reading.

    Attributes:
        path: as given.
        prefix: put before the relative paths to make ids; empty if it is the only folder.
        elsewhere: real paths inside it that are inputs of their own.
    """

    path: str
    prefix: str = ""
    elsewhere: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Stdin:
    """Standard input."""


Source = File | Folder | Stdin


@dataclass(frozen=True, slots=True)
class Filters:
    """Shell patterns that narrow what folders and glob patterns find.

    A pattern is held against the path relative to the folder and against the file's name; its `*`
    also matches `/`. A folder that is excluded is not entered.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def take(self, relative: str) -> bool:
        """Whether a file passes."""
        return (not self.include or _matches(relative, self.include)) and not self.drop(relative)

    def drop(self, relative: str) -> bool:
        """Whether a file or folder is excluded."""
        return _matches(relative, self.exclude)


def _matches(relative: str, patterns: Sequence[str]) -> bool:
    name = relative.rpartition("/")[2]
    return any(fnmatchcase(relative, p) or fnmatchcase(name, p) for p in patterns)


def resolve(paths: Sequence[str], filters: Filters) -> list[Source]:
    """What the paths name, in their order, each once.

    Raises:
        InputError: one of them does not exist, cannot be read, has no suffix that we know, or
            finds nothing.
    """
    if not paths:
        raise InputError("no input is given")
    found: dict[str, Source] = {}  # by real path: a file that is named twice is read once
    for path in paths:
        for source in _expand(path, filters):
            key = "-" if isinstance(source, Stdin) else os.path.realpath(source.path)
            found.setdefault(key, source)
    names = Counter(source.name for source in found.values() if isinstance(source, File))
    folders = [key for key, source in found.items() if isinstance(source, Folder)]
    sources: list[Source] = []
    for key, source in found.items():
        if isinstance(source, File) and names[source.name] > 1:
            source = File(source.path, source.path, source.format, source.packed)
        elif isinstance(source, Folder):
            prefix = f"{source.path}/" if len(folders) > 1 else ""
            inside = frozenset(other for other in found if other.startswith(key + os.sep))
            source = Folder(source.path, prefix, inside)
        sources.append(source)
    return sources


def _expand(path: str, filters: Filters) -> Iterator[Source]:
    if path == "-":
        yield Stdin()
    elif os.path.isdir(path):
        yield _folder(os.path.normpath(path), filters)
    elif os.path.lexists(path) or not glob.has_magic(path):
        path = os.path.normpath(path)
        yield _file(path, os.path.basename(path))
    else:
        yield from _pattern(path, filters)


def _file(path: str, name: str) -> File:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a file (for a pipe, use -)")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: permission denied")
    lowered = path.lower()
    packed = lowered.endswith(".gz")
    suffix = os.path.splitext(lowered.removesuffix(".gz"))[1]
    file_format = FORMATS.get(suffix)
    if file_format is None or (packed and file_format not in _PACKED):
        raise InputError(_unknown(path, suffix))
    return File(path, name, file_format, packed)


def _unknown(path: str, suffix: str) -> str:
    if suffix == ".json":
        return f"{path} is not JSON Lines: make it so with jq -c '.[]' {path} > {path}l"
    return f"{path} has a suffix that cannot be read; known are {', '.join(FORMATS)}"


def _folder(path: str, filters: Filters) -> Folder:
    try:
        os.scandir(path).close()
    except OSError as error:
        raise InputError(f"the folder {path} cannot be read: {error.strerror}") from error
    folder = Folder(path)
    if next(walk(folder, filters), None) is None:
        narrowed = " that --include and --exclude let through"
        given = narrowed if filters.include or filters.exclude else ""
        raise InputError(f"the folder {path} holds no .txt or .md file{given}")
    return folder


def _pattern(pattern: str, filters: Filters) -> Iterator[File]:
    fixed = os.path.dirname(re.split(r"[*?[]", pattern, maxsplit=1)[0])
    found = False
    for path in sorted(glob.glob(pattern, recursive=True)):
        relative = os.path.relpath(path, fixed or os.curdir)
        if os.path.isdir(path) or not filters.take(relative):
            continue
        found = True
        yield _file(os.path.normpath(path), relative)
    if not found:
        raise InputError(f"no file matches {pattern}")


def walk(folder: Folder, filters: Filters) -> Iterator[tuple[str, str | None]]:
    """Paths of a folder's text files, relative to it, in a fixed order.

    What cannot be read comes with the reason, and so does a link that leads out of the folder.
    Linked folders are not followed.
    Memory is that of the largest folder's names.
    """
    failed: list[OSError] = []
    root = os.path.realpath(folder.path)
    for at, folders, files in os.walk(root, onerror=failed.append):
        above = os.path.relpath(at, root)
        above = "" if above == os.curdir else above + os.sep
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and not filters.drop(above + name)
            and os.path.join(at, name) not in folder.elsewhere
        )
        for name in sorted(files):
            path = os.path.join(at, name)
            if _wanted(above + name, filters) and path not in folder.elsewhere:
                yield above + name, LEADS_OUT if leads_out(path, root) else None
        yield from _unreadable(failed, root)
    yield from _unreadable(failed, root)


def leads_out(path: str, root: str) -> bool:
    """Whether a file is a link to one outside of a folder: what is not ours to read, as far as
    whoever named the folder knows.

    Args:
        path: the file.
        root: the folder's real path.
    """
    return os.path.islink(path) and not os.path.realpath(path).startswith(root + os.sep)


def _wanted(relative: str, filters: Filters) -> bool:
    name = os.path.basename(relative)
    known = FORMATS.get(os.path.splitext(name.lower())[1]) == "text"
    return known and not name.startswith(".") and filters.take(relative)


def _unreadable(failed: list[OSError], root: str) -> Iterator[tuple[str, str]]:
    while failed:
        error = failed.pop(0)
        name = os.path.relpath(error.filename, root)
        yield name, f"the folder cannot be read: {error.strerror}"
