"""From a path to the writer for it."""

from __future__ import annotations

import os

from fanout.outputs.jsonl import JsonlWriter, StdoutWriter
from fanout.outputs.parquet import ParquetWriter
from fanout.outputs.writer import OutputError, RecordWriter

JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)


def open_output(path: str, *, append: bool = False, overwrite: bool = False) -> RecordWriter:
    """Open an output; the suffix tells the format, `-` is standard output.

    Args:
        append: continue what is there, or start anew if nothing is.
        overwrite: replace what is there.

    Raises:
        OutputError: the folder does not exist, the file cannot be written, is being written by
            another process, or exists and is neither to be continued nor overwritten; or the
            suffix is unknown.
    """
    if append and overwrite:
        raise OutputError("an output is either continued or overwritten, not both")
    if path == "-":
        return StdoutWriter()
    suffix = suffix_of(path)
    if suffix in JSON_LINES:
        return JsonlWriter(path, append=append, overwrite=overwrite)
    return ParquetWriter(path, append=append, overwrite=overwrite)


def check_output(path: str, *, overwrite: bool = False) -> None:
    """Look whether `open_output` would do, and leave nothing behind.

    Raises:
        OutputError: as `open_output`, as far as a look can tell.
    """
    if path == "-":
        return
    suffix_of(path)
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise OutputError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path} cannot be written: the folder {folder} is read-only")
    if os.path.islink(path) and not os.path.exists(path):
        # To write through it would make a file where nobody looks for one.
        aim = os.readlink(path)
        raise OutputError(
            f"{path} cannot be written: it is a symbolic link to {aim}, which does not exist"
        )
    if os.path.isdir(path):
        raise OutputError(f"{path} cannot be written: it is a folder")
    if os.path.exists(path) and not overwrite:
        raise OutputError(f"{path} exists already: --overwrite replaces it")


def suffix_of(path: str) -> str:
    """The suffix of a record file.

    Raises:
        OutputError: it is none that we know.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in JSON_LINES + PARQUET:
        known = ", ".join(JSON_LINES + PARQUET)
        raise OutputError(f"{path} has a suffix that is no record format; known are {known}")
    return suffix
