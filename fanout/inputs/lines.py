"""Lines of bounded length from a binary stream, and the rows of JSON lines and plain text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import orjson

from fanout.inputs.document import RAW_BYTES, Row, Unreadable, too_large

_SKIP = 1 << 16


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it came, with its end.

    Attributes:
        number: 1-based.
        data: the line; of one over the limit only the beginning.
        too_long: over the limit.
        quotes: how many `"` a line over the limit holds, for the CSV reader to find its end.
    """

    number: int
    data: bytes
    too_long: bool = False
    quotes: int = 0


def read_lines(stream: BinaryIO, max_bytes: int) -> Iterator[Line]:
    """The lines of a stream; never holds more than one, nor more than `max_bytes` of it."""
    number = 0
    while data := stream.readline(max_bytes + 2):  # room for the line's end
        number += 1
        if number == 1:
            data = data.removeprefix(codecs.BOM_UTF8)
        if len(data.rstrip(b"\r\n")) <= max_bytes:
            yield Line(number, data)
        else:
            quotes = data.count(b'"') + (0 if data.endswith(b"\n") else _skip(stream))
            yield Line(number, data[:RAW_BYTES], too_long=True, quotes=quotes)


def _skip(stream: BinaryIO) -> int:
    quotes = 0
    while part := stream.readline(_SKIP):
        quotes += part.count(b'"')
        if part.endswith(b"\n"):
            break
    return quotes


def json_rows(lines: Iterable[Line], max_bytes: int) -> Iterator[Row | Unreadable]:
    """One row a line that is not blank."""
    for line in lines:
        if line.too_long:
            yield Unreadable(line.number, too_large(max_bytes), line.data)
        elif line.data.strip():
            try:
                yield Row(line.number, orjson.loads(line.data), line.data)
            except orjson.JSONDecodeError as error:
                yield Unreadable(line.number, _why(line.data, error), line.data)


def text_rows(lines: Iterable[Line], max_bytes: int) -> Iterator[Row | Unreadable]:
    """One row, the bare line, for every line that is not blank."""
    for line in lines:
        if line.too_long:
            yield Unreadable(line.number, too_large(max_bytes), line.data)
        elif line.data.strip():
            try:
                yield Row(line.number, line.data.decode().rstrip("\r\n"), line.data)
            except UnicodeDecodeError as error:
                yield Unreadable(line.number, not_utf8(error), line.data)


def looks_like_json(lines: Iterator[Line]) -> tuple[bool, list[Line]]:
    """Whether the first visible character is `{`, and the lines read to find out."""
    read = []
    for line in lines:
        read.append(line)
        if start := line.data.lstrip():
            return start.startswith(b"{"), read
        read.pop()  # a stream may begin with any number of blank lines
    return False, read


def not_utf8(error: UnicodeDecodeError) -> str:
    """The reason of a row whose bytes are no UTF-8."""
    return f"invalid UTF-8 at byte {error.start + 1}"


def _why(data: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as undecodable:
        return not_utf8(undecodable)
    return f"broken JSON at character {error.pos + 1}: {error.msg}"
