"""Taking records out of an output."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fanout.arrow import pyarrow
from fanout.outputs.jsonl import sync_folder
from fanout.outputs.opening import JSON_LINES, suffix_of
from fanout.outputs.parquet import columns, read_rows
from fanout.outputs.writer import OutputError, from_line

#: Says of a record, as a mapping with at least `id`, `ordinal` and `status`, whether it goes.
Goes = Callable[[Mapping[str, Any]], bool]

_ROWS = 10_000


def drop_records(path: str, goes: Goes) -> int:
    """Rewrite an output without some of its records, all or nothing; how many went.

    Whoever calls has the output's lock; the file that has it is another one afterwards.

    Raises:
        OutputError: the output cannot be read or written.
    """
    temporary = f"{path}.tmp"
    try:
        write = _drop_lines if suffix_of(path) in JSON_LINES else _drop_rows
        gone = write(path, temporary, goes)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        sync_folder(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be rewritten: {error}") from error
    return gone


def _drop_lines(path: str, temporary: str, goes: Goes) -> int:
    gone = 0
    with open(path, "rb") as old, open(temporary, "wb") as new:
        for line in old:
            if goes(from_line(line)):
                gone += 1
            else:
                new.write(line)
    return gone


def _drop_rows(path: str, temporary: str, goes: Goes) -> int:
    pa = pyarrow(OutputError)
    schema = columns(pa)
    gone = 0

    def kept() -> Iterator[dict[str, Any]]:
        nonlocal gone
        for row in read_rows(path):
            if goes(row):
                gone += 1
            else:
                yield row

    with (
        open(temporary, "wb") as stream,
        pa.parquet.ParquetWriter(stream, schema, compression="zstd") as table,
    ):
        group: list[dict[str, Any]] = []
        for row in kept():
            group.append(row)
            if len(group) == _ROWS:
                table.write_table(pa.Table.from_pylist(group, schema=schema))
                group = []
        if group:
            table.write_table(pa.Table.from_pylist(group, schema=schema))
    return gone
