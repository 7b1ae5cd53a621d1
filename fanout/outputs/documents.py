"""Outputs that are one JSON document: which records went into it, for who verifies them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from fanout.outputs.parquet import journal_of
from fanout.outputs.reading import read_records
from fanout.outputs.writer import OutputError
from fanout.wire import STATUSES, Record


def lines_of(records: Iterable[Record]) -> list[dict[str, Any]]:
    """What a document says, under `records`, of the records that went into it."""
    return [
        {
            "id": record.id,
            "ordinal": record.ordinal,
            "status": record.status,
            "input_sha256": record.input_sha256,
        }
        for record in records
    ]


def read_document(path: str) -> Iterator[dict[str, Any]]:
    """The lines that a document has of its records, in their order.

    Of a document that is not written yet the records gathered for it come.

    Raises:
        OutputError: there is no such file, or it is no document with lines of records.
    """
    if not os.path.exists(path) and os.path.exists(journal_of(path)):
        yield from read_records(journal_of(path))
        return
    try:
        with open(path, "rb") as stream:
            document = orjson.loads(stream.read())
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise OutputError(f"{path} is not JSON: {error}") from error
    lines = document.get("records") if isinstance(document, dict) else None
    if not isinstance(lines, list):
        raise OutputError(f"{path} does not say which records went into it")
    for line in lines:
        if not isinstance(line, dict) or line.get("status") not in STATUSES:
            raise OutputError(f"{path} is damaged: {line!r:.80} is said of a record")
        yield line
