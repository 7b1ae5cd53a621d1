"""Records as Parquet.

A Parquet file can be read only when its end is written, so it cannot be made durable batch by
batch. Records therefore go to a journal of JSON lines beside it, `out.parquet.partial.jsonl`, which
is. Closing turns the journal into the table under a temporary name and renames it into place; a run
that ended early leaves the journal, to be continued.

The columns are the same in every file: `data`, `evidence` and `retried` vary from job to job and
are JSON strings; `error`, `usage` and `timing` are structs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from types import ModuleType
from typing import Any

from fanout.arrow import pyarrow
from fanout.outputs.jsonl import JsonlWriter, sync_folder
from fanout.outputs.writer import (
    OutputError,
    OutputFailed,
    RecordWriter,
    from_json,
    from_line,
    to_json,
)
from fanout.wire import ErrorInfo, Record, Timing, Usage

#: A row group is written at this many rows or this many bytes of JSON, whichever comes first.
_GROUP_ROWS = 10_000
_GROUP_BYTES = 32 * 1024 * 1024

JSON_COLUMNS = ("data", "evidence", "retried")

#: Metadata key under which a table names the journal that it was made of.
_JOURNAL = b"fanout.journal"


def journal_of(path: str) -> str:
    """The journal of a Parquet output."""
    return f"{path}.partial.jsonl"


class ParquetWriter(RecordWriter):
    """Gathers records in the journal and makes the table at the end.

    Args:
        path: the table; must not exist, nor its journal, unless `append` or `overwrite`.
        append: continue the journal, if there is one; at the end the table holds the rows that it
            had before, and the journal's.
        overwrite: drop the journal; the table is replaced at the end.

    Raises:
        OutputError: pyarrow is missing, or the output cannot be opened.
    """

    def __init__(self, path: str, *, append: bool = False, overwrite: bool = False) -> None:
        self.path = path
        self._pa = pyarrow(OutputError)
        self._append = append
        if os.path.exists(path) and not (append or overwrite):
            raise OutputError(f"{path} exists already: continue it, or overwrite it")
        if os.path.isdir(path):
            raise OutputError(f"{path} is a folder")
        if append and os.path.exists(path):
            _check_columns(self._pa, path)
        fresh = overwrite or (append and is_published(path))
        self._journal = JsonlWriter(journal_of(path), append=append and not fresh, overwrite=fresh)
        self._open = True

    def write_lines(self, lines: Sequence[bytes]) -> None:
        self._journal.write_lines(lines)

    def flush(self) -> None:
        self._journal.flush()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        temporary = f"{self.path}.tmp"
        try:
            self._journal.flush()
            self._make_table(temporary)
            os.replace(temporary, self.path)
            sync_folder(self.path)
            os.unlink(self._journal.path)
        except (OSError, ValueError, self._pa.ArrowException) as error:
            with suppress(OSError):  # half a table would only fill the disk further
                os.unlink(temporary)
            raise OutputFailed(
                f"{self.path} cannot be made, its records are in {self._journal.path}: {error}"
            ) from error
        finally:
            self._journal.release()

    def release(self) -> None:
        self._open = False
        self._journal.release()

    def _make_table(self, temporary: str) -> None:
        schema = columns(self._pa).with_metadata({_JOURNAL: _mark(self._journal.path)})
        with (
            open(temporary, "wb") as stream,
            self._pa.parquet.ParquetWriter(stream, schema, compression="zstd") as table,
        ):
            for rows in _groups(self._lines()):
                table.write_table(self._pa.Table.from_pylist(rows, schema=schema))
        # Opened again, because closing the table is what completes the file.
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Rows and their size in bytes: the old table's, then the journal's."""
        old = self._append and os.path.exists(self.path)
        before = read_rows(self.path) if old else iter(())
        with open(self._journal.path, "rb") as journal:
            lines = ((_to_row(from_line(line)), len(line)) for line in journal)
            yield from chain(((row, _size(row)) for row in before), lines)


def columns(pa: ModuleType) -> Any:
    """The schema of every file, derived from `fanout.wire.Record`."""
    structs = {
        "usage": pa.struct([(name, pa.int64()) for name in Usage.model_fields]),
        "timing": pa.struct([(name, pa.float64()) for name in Timing.model_fields]),
        "error": pa.struct([(name, pa.string()) for name in ErrorInfo.model_fields]),
        "attempts": pa.int64(),
        "ordinal": pa.int64(),
    }
    return pa.schema([(name, structs.get(name, pa.string())) for name in Record.model_fields])


def read_rows(path: str) -> Iterator[dict[str, Any]]:
    """The table's rows as they stand, with JSON columns unparsed.

    Raises:
        OutputError: pyarrow is missing, or this is not a table of records.
    """
    pa = pyarrow(OutputError)
    _check_columns(pa, path)
    try:
        with pa.parquet.ParquetFile(path, pre_buffer=False) as table:
            for batch in table.iter_batches(1024):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise OutputError(f"{path} cannot be read as Parquet: {error}") from error


def to_record(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the record that it was made of."""
    parsed = {name: _parsed(row[name]) for name in JSON_COLUMNS if name in row}
    return {**row, **parsed}


def is_published(path: str) -> bool:
    """Whether the journal is in the table already: a crash fell between renaming and removing."""
    try:
        mark = _mark(journal_of(path))
    except FileNotFoundError:
        return False
    if not os.path.exists(path):
        return False
    metadata = _schema(pyarrow(OutputError), path).metadata or {}
    return bool(metadata.get(_JOURNAL) == mark)


def _schema(pa: ModuleType, path: str) -> Any:
    try:
        return pa.parquet.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise OutputError(f"{path} cannot be read as Parquet: {error}") from error


def _check_columns(pa: ModuleType, path: str) -> None:
    """Refuse a table of something else, which continuing would replace."""
    names = set(_schema(pa, path).names)
    if not {"id", "status"} <= names <= set(Record.model_fields):
        raise OutputError(f"{path} is not a table of records")


def _mark(journal: str) -> bytes:
    stat = os.stat(journal)
    return f"{stat.st_size}:{stat.st_mtime_ns}".encode()


def _to_row(record: dict[str, Any]) -> dict[str, Any]:
    # Keys that are no column are left out, as `fanout.wire` does with what it does not know.
    row = {name: record.get(name) for name in Record.model_fields}
    for name in JSON_COLUMNS:
        row[name] = None if row[name] is None else to_json(row[name]).decode()
    return row


def _groups(rows: Iterator[tuple[dict[str, Any], int]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row, row_size in rows:
        group.append(row)
        size += row_size
        if len(group) >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _size(row: dict[str, Any]) -> int:
    return sum(len(row[name] or "") for name in JSON_COLUMNS)


def _parsed(text: str | None) -> Any:
    return None if text is None else from_json(text)
