"""Opening one source: its head is looked at now, its rows are read later."""

from __future__ import annotations

import codecs
import gzip
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import BinaryIO, Literal, cast

from fanout.inputs.document import InputError, Row, RowError, Unreadable, too_large
from fanout.inputs.fields import Fields
from fanout.inputs.lines import Line, json_rows, looks_like_json, read_lines, text_rows
from fanout.inputs.parquet import ParquetRows
from fanout.inputs.sources import File
from fanout.inputs.tables import csv_header, csv_rows

StdinFormat = Literal["auto", "jsonl", "text"]
Rows = Iterator[Row | Unreadable]

#: What reading a file can raise in its middle: the disk, and a gzip stream that is cut or damaged.
_READ_ERRORS = (OSError, EOFError, zlib.error)


def file_rows(file: File, fields: Fields, max_bytes: int) -> tuple[Fields, Rows]:
    """The fields to use and the rows, of any format but text.

    Raises:
        InputError: now, where reading would give nothing but bad rows.
    """
    if file.format == "parquet":
        with ParquetRows(file.path) as table:
            return table.fields(fields, file.path), _until_broken(_parquet_rows(file.path))
    try:
        with open_binary(file) as stream:
            if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise InputError(f"{file.path} is UTF-16: convert it to UTF-8")
        if file.format == "jsonl":
            rows = _from_lines(file, max_bytes, lambda lines: json_rows(lines, max_bytes))
        else:
            fields, rows = _table(file, fields, max_bytes)
    except _READ_ERRORS as error:
        raise InputError(f"{file.path} cannot be read: {error}") from error
    return fields, _until_broken(rows)


def stdin_rows(stdin: BinaryIO | None, stdin_format: StdinFormat, max_bytes: int) -> Rows:
    """The rows of standard input; nothing is read before the first is asked for."""
    lines = read_lines(stdin or sys.stdin.buffer, max_bytes)
    if stdin_format == "auto":
        is_json, read = looks_like_json(lines)
        stdin_format = "jsonl" if is_json else "text"
        lines = chain(read, lines)
    parse = json_rows if stdin_format == "jsonl" else text_rows
    yield from _until_broken(parse(lines, max_bytes))


def read_whole(path: str, max_bytes: int) -> bytes:
    """A text file's bytes, without a byte order mark.

    Raises:
        RowError: it cannot be read, or is too large.
    """
    try:
        # A named pipe in a folder would block for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise RowError("not a regular file")
        with open(path, "rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise RowError(f"the file cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise RowError(too_large(max_bytes))
    return data.removeprefix(codecs.BOM_UTF8)


@contextmanager
def open_binary(file: File) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked."""
    if file.packed:
        with gzip.open(file.path, "rb") as unpacked:
            yield cast(BinaryIO, unpacked)
    else:
        with open(file.path, "rb") as stream:
            yield stream


def _table(file: File, fields: Fields, max_bytes: int) -> tuple[Fields, Rows]:
    default = "\t" if file.format == "tsv" else ","
    with open_binary(file) as stream:
        columns, delimiter = csv_header(read_lines(stream, max_bytes), file.path, default)

    def parse(lines: Iterator[Line]) -> Rows:
        next(line for line in lines if line.data.strip())  # the header
        return csv_rows(lines, columns, delimiter, max_bytes)

    fields = fields.of_table(columns, columns, file.path)
    return fields, _from_lines(file, max_bytes, parse)


def _from_lines(file: File, max_bytes: int, parse: Callable[[Iterator[Line]], Rows]) -> Rows:
    with open_binary(file) as stream:
        yield from parse(read_lines(stream, max_bytes))


def _parquet_rows(path: str) -> Rows:
    with ParquetRows(path) as table:
        yield from table.rows()


def _until_broken(rows: Rows) -> Rows:
    line = 0
    try:
        for row in rows:
            line = row.line
            yield row
    except (*_READ_ERRORS, InputError) as error:
        # The rest is lost to us; one bad row says so, and the other inputs are still read.
        yield Unreadable(line + 1, f"nothing from here on can be read: {error}")
