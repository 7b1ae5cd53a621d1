"""What reading yields: a document, or the account of a row that is none."""

from __future__ import annotations

from dataclasses import dataclass

from fanout.errors import UsageError

#: The largest row, or text file, that is read as a document.
MAX_BYTES = 8 * 1024 * 1024

#: How much of a bad row is kept to show, in bytes.
RAW_BYTES = 2000


class InputError(UsageError):
    """An input cannot be read at all; raised before the first document."""


class RowError(Exception):
    """One row is no document; the message is the reason a `BadRow` gives."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Attributes:
        id: the row's own id, else `<file>:<line>`, or the path of a text file; unique in a run.
        text: never blank, no NUL.
        meta: the row's other fields, as JSON values.
        source: where it stands, for people: `docs.jsonl:17` or `notes/a.txt`.
    """

    id: str
    text: str
    meta: dict[str, object]
    source: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row, a file or the rest of a file that cannot be a document.

    Attributes:
        id: made from the place, `docs.jsonl:17`; unique among all ids of a run.
        source: as in `Document`.
        line: 1-based line (of a Parquet file: row); None where a whole file is meant.
        reason: one clause for a person.
        raw: the beginning of the row, at most 2,000 bytes of it.
    """

    id: str
    source: str
    line: int | None
    reason: str
    raw: str


@dataclass(frozen=True, slots=True)
class Row:
    """A parsed row before its fields are told apart; `raw` is empty for Parquet."""

    line: int
    value: object
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that could not be parsed, or the place at which a file stops being readable."""

    line: int
    reason: str
    raw: bytes = b""


def too_large(max_bytes: int) -> str:
    """The reason of a row over the limit."""
    return f"larger than {max_bytes:,} bytes"
