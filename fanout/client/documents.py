"""What a job works on: documents in any form."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import Any

from fanout.inputs import BadRow, Document

#: What `submit` takes as one document: a text, an object with a payload (and maybe an `id`), a
#: document as `fanout.inputs` reads it, or a row that could not be read.
Doc = str | Mapping[str, Any] | Document | BadRow
#: The documents of a job that goes on; a function that opens them again where they may have to be
#: read twice.
Docs = Iterable[Doc] | AsyncIterable[Doc] | Callable[[], Iterable[Doc]]


def payload_of(doc: str | Mapping[str, Any] | Document, ordinal: int) -> tuple[str, Any]:
    """(id, payload) of a document; `ordinal` is the id of one that has none."""
    if isinstance(doc, str):
        return str(ordinal), {"text": doc}
    if isinstance(doc, Document):
        return doc.id, {"text": doc.text, "meta": doc.meta} if doc.meta else {"text": doc.text}
    payload = {key: value for key, value in doc.items() if key != "id"}
    return str(doc.get("id", ordinal)), payload
