"""Reading records back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from fanout.outputs.opening import JSON_LINES, suffix_of
from fanout.outputs.parquet import is_published, journal_of, read_rows, to_record
from fanout.outputs.writer import OutputError, from_line


def read_records(path: str) -> Iterator[dict[str, Any]]:
    """The records of an output, in the order in which they were written.

    Of a Parquet output that is not complete the records of its journal come too. A last line that
    is cut short is left out: it is being written, or a crash cut it and `append` will drop it.

    Raises:
        OutputError: there is no such file, or it does not hold records; where it tells only in its
            middle, then.
    """
    if path == "-":
        raise OutputError("standard output cannot be read back")
    if suffix_of(path) in JSON_LINES:
        yield from _lines(path)
        return
    journal = journal_of(path)
    found = os.path.exists(path)
    if found:
        yield from map(to_record, read_rows(path))
    if os.path.exists(journal):
        if not (found and is_published(path)):
            yield from _lines(journal)
    elif not found:
        raise OutputError(f"{path} does not exist")


def _lines(path: str) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield from_line(line)
                except ValueError as error:
                    if line.endswith(b"\n"):
                        raise OutputError(f"{path}:{number} is not a record: {error}") from error
    except FileNotFoundError:
        raise OutputError(f"{path} does not exist") from None
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
