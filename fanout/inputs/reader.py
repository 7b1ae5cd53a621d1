"""Reads inputs as one stream of documents and bad rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import orjson

from fanout.inputs.document import (
    MAX_BYTES,
    RAW_BYTES,
    BadRow,
    Document,
    Row,
    RowError,
    Unreadable,
    too_large,
)
from fanout.inputs.fields import Fields, check_text
from fanout.inputs.files import Rows, StdinFormat, file_rows, read_whole, stdin_rows
from fanout.inputs.ids import Ids
from fanout.inputs.lines import not_utf8
from fanout.inputs.sources import File, Filters, Folder, Source, Stdin, resolve, walk

Documents = Iterator[Document | BadRow]


def read_inputs(
    paths: Sequence[str],
    *,
    text_field: str | None = None,
    id_field: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    stdin_format: StdinFormat = "auto",
    max_bytes: int = MAX_BYTES,
    stdin: BinaryIO | None = None,
) -> Iterator[Document | BadRow]:
    """Documents of files, folders, patterns and standard input (`-`), in order.

    All inputs are checked now; rows are read as the iterator is advanced. The same inputs give the
    same ids.

    Args:
        paths: see the package's description.
        text_field: the field of the text; by default the first of `TEXT_FIELDS`, else the row's
            only string beside its id.
        id_field: the field of the id; by default `id`, else the place (`docs.jsonl:17`).
        include: shell patterns; folders and glob patterns give only what matches one.
        exclude: shell patterns; they give nothing that matches one.
        stdin_format: `auto` tells JSON lines by a `{` as the first visible character.
        max_bytes: a larger row or text file is a bad row.
        stdin: read instead of the process's standard input.

    Raises:
        InputError: a path does not exist, cannot be read, finds nothing, or is of an unknown
            format; a table lacks the column that was named.
    """
    filters = Filters(include, exclude)
    reader = _Reader(Fields(text_field, id_field), filters, stdin_format, max_bytes, stdin)
    return _in_turn([reader.open(source) for source in resolve(paths, filters)])


def _in_turn(parts: Iterable[Documents]) -> Documents:
    for part in parts:
        yield from part


@dataclass(slots=True)
class _Reader:
    fields: Fields
    filters: Filters
    stdin_format: StdinFormat
    max_bytes: int
    stdin: BinaryIO | None
    ids: Ids = field(default_factory=Ids)

    def open(self, source: Source) -> Documents:
        """What the source holds; its head is checked now.

        Raises:
            InputError: it cannot be read.
        """
        if isinstance(source, Folder):
            return self._folder(source)
        if isinstance(source, Stdin):
            rows = stdin_rows(self.stdin, self.stdin_format, self.max_bytes)
            return self._rows("stdin", "stdin", self.fields, rows)
        if source.format == "text":
            return self._text_file(source)
        fields, rows = file_rows(source, self.fields, self.max_bytes)
        return self._rows(source.name, source.path, fields, rows)

    def _rows(self, name: str, path: str, fields: Fields, rows: Rows) -> Documents:
        name, path = _written(name), _written(path)
        for row in rows:
            made_id, place = f"{name}:{row.line}", f"{path}:{row.line}"
            if isinstance(row, Unreadable):
                yield self._bad(made_id, place, row.line, row.reason, row.raw)
                continue
            try:
                yield self._document(row, fields, made_id, place)
            except RowError as error:
                raw = row.raw or orjson.dumps(row.value)
                yield self._bad(made_id, place, row.line, str(error), raw)

    def _document(self, row: Row, fields: Fields, made_id: str, place: str) -> Document:
        text, own_id, meta = fields.split(row.value)
        # Lines are bounded while they are read; a Parquet cell is only known now. A string has at
        # most 4 bytes a character, so most texts need no encoding to tell.
        if 4 * len(text) > self.max_bytes and len(text.encode()) > self.max_bytes:
            raise RowError(too_large(self.max_bytes))
        if own_id is None:
            return Document(self.ids.fresh(made_id), text, meta, place)
        if not self.ids.claim(own_id):
            raise RowError(f"the id {own_id!r} was used before")
        return Document(own_id, text, meta, place)

    def _folder(self, folder: Folder) -> Documents:
        for relative, reason in walk(folder, self.filters):
            path = os.path.normpath(os.path.join(folder.path, relative))
            name = folder.prefix + relative
            if reason is None:
                yield self._text(path, name)
            else:
                yield self._bad(_written(name), _written(path), None, reason)

    def _text_file(self, file: File) -> Documents:
        yield self._text(file.path, file.name)

    def _text(self, path: str, name: str) -> Document | BadRow:
        data, name, place = b"", _written(name), _written(path)
        try:
            data = read_whole(path, self.max_bytes)
            text = check_text(data.decode())
        except UnicodeDecodeError as error:
            return self._bad(name, place, None, not_utf8(error), data)
        except RowError as error:
            return self._bad(name, place, None, str(error), data)
        return Document(self.ids.fresh(name), text, {}, place)

    def _bad(
        self, made_id: str, place: str, line: int | None, reason: str, raw: bytes = b""
    ) -> BadRow:
        shown = raw[:RAW_BYTES].decode(errors="replace")
        return BadRow(self.ids.fresh(made_id), place, line, reason, shown)


def _written(name: str) -> str:
    # A file name is bytes: what is not UTF-8 in it cannot be written anywhere as it is.
    return name.encode("utf-8", "backslashreplace").decode()
