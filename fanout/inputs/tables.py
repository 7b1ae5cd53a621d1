"""Rows of .csv and .tsv files.

Quoting is RFC 4180's, for tabs too (as spreadsheets write them), and checked strictly: a stray
quote costs its own row, and reading goes on at the next line, instead of the rest of the file
ending up in one field.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator

from fanout.inputs.document import RAW_BYTES, InputError, Row, Unreadable, too_large
from fanout.inputs.lines import Line, not_utf8

#: A .csv whose header has no comma may be separated by one of these.
_OTHER_DELIMITERS = (";", "\t")


class _TooLongError(Exception):
    """The current row is over the limit."""


class _RowLines:
    """Feeds the csv reader, and remembers the lines that it took for the current row."""

    def __init__(self, lines: Iterator[Line], max_bytes: int) -> None:
        self._lines = lines
        self._again: deque[Line] = deque()
        self._max_bytes = max_bytes
        self.begin()

    def begin(self) -> None:
        """The next line is the first of a row."""
        self.taken: list[Line] = []
        self.undecodable: str | None = None
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        self._size += len(line.data)
        if line.too_long or self._size > self._max_bytes + 2:
            raise _TooLongError
        try:
            return line.data.decode()
        except UnicodeDecodeError as error:
            # Told after the row's end is found: its other lines are not rows of their own.
            self.undecodable = self.undecodable or not_utf8(error)
            return line.data.decode(errors="replace")

    @property
    def first(self) -> int:
        return self.taken[0].number

    @property
    def raw(self) -> bytes:
        return b"".join(line.data[:RAW_BYTES] for line in self.taken[:20])[:RAW_BYTES]

    def only_first(self) -> None:
        """Take back all lines of this row but the first, to read them as rows of their own."""
        self._again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]

    def skip_row(self) -> int:
        """Drop lines up to the end of this row, where its quotes are balanced; the last line."""
        quotes = sum(_quotes(line) for line in self.taken)
        last = self.taken[-1].number
        while quotes % 2:
            line = self._again.popleft() if self._again else next(self._lines, None)
            if line is None:
                break
            quotes += _quotes(line)
            last = line.number
        return last


def _quotes(line: Line) -> int:
    return line.quotes if line.too_long else line.data.count(b'"')


def csv_header(lines: Iterator[Line], source: str, delimiter: str) -> tuple[list[str], str]:
    """Column names and the delimiter in use; takes the header's line.

    Raises:
        InputError: there is no header row, or it cannot be used.
    """
    line = next((line for line in lines if line.data.strip()), None)
    if line is None or line.too_long:
        raise InputError(f"{source} does not begin with a header row")
    try:
        columns, delimiter = _split_header(line.data.decode().rstrip("\r\n"), delimiter)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the header row of {source} cannot be read: {error}") from error
    columns = [name.strip() or f"column_{n}" for n, name in enumerate(columns, 1)]
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise InputError(f"{source} has two columns named {twice!r}")
    return columns, delimiter


def _split_header(text: str, delimiter: str) -> tuple[list[str], str]:
    columns = next(csv.reader([text], delimiter=delimiter, strict=True))
    if delimiter == "," and len(columns) == 1:
        for other in _OTHER_DELIMITERS:
            if other in text:
                return next(csv.reader([text], delimiter=other, strict=True)), other
    return columns, delimiter


def csv_rows(
    lines: Iterator[Line], columns: list[str], delimiter: str, max_bytes: int
) -> Iterator[Row | Unreadable]:
    """The rows after the header, as objects of strings; blank lines are skipped.

    A row's line is the one it begins at.
    """
    # The limit is the csv module's own and holds for the process, so it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes + 2))
    feed = _RowLines(lines, max_bytes)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin()
        try:
            values = next(reader)
        except StopIteration:
            return
        except _TooLongError:
            # `feed.first` before skipping: the row's own first line is its place.
            first, raw, last = feed.first, feed.raw, feed.skip_row()
            span = "" if last == first else f" (lines {first} to {last})"
            yield Unreadable(first, too_large(max_bytes) + span, raw)
        except csv.Error as error:
            feed.only_first()
            reason = f"broken CSV, perhaps a stray quote: {error}"
            yield Unreadable(feed.first, feed.undecodable or reason, feed.raw)
        else:
            if values:
                yield _row(feed, columns, values)


def _row(feed: _RowLines, columns: list[str], values: list[str]) -> Row | Unreadable:
    if feed.undecodable:
        return Unreadable(feed.first, feed.undecodable, feed.raw)
    if len(values) != len(columns):
        reason = f"{len(values)} fields where the header has {len(columns)}"
        return Unreadable(feed.first, reason, feed.raw)
    return Row(feed.first, dict(zip(columns, values, strict=True)), feed.raw)
