"""Rows of Parquet files, by batches.

Binary columns are left out: they are no text, and images would travel in every message. Dates and
other types that JSON lacks become strings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from fanout.arrow import pyarrow
from fanout.inputs.document import InputError, Row, Unreadable
from fanout.inputs.fields import Fields

_BATCH_ROWS = 256


class ParquetRows:
    """One Parquet file, opened for reading.

    Raises:
        InputError: pyarrow is missing, or this is no Parquet file.
    """

    def __init__(self, path: str) -> None:
        self._pa = pyarrow(InputError)
        try:
            # Without pre-buffering, or the whole file's column chunks gather in memory.
            self._file = self._pa.parquet.ParquetFile(path, pre_buffer=False)
        except (self._pa.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as Parquet: {error}") from error
        self.count: int = self._file.metadata.num_rows

    def __enter__(self) -> ParquetRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fields(self, fields: Fields, source: str) -> Fields:
        """The fields to use, told by the file's columns.

        Raises:
            InputError: there is no such column.
        """
        columns = self._columns()
        strings = [name for name in columns if self._is(name, "string")]
        return fields.of_table(columns, strings, source)

    def rows(self) -> Iterator[Row | Unreadable]:
        """Rows from 1; a broken page ends the file with an `Unreadable`."""
        number = 0
        try:
            for batch in self._file.iter_batches(_BATCH_ROWS, columns=self._columns()):
                for row in batch.to_pylist():
                    number += 1
                    yield Row(number, _as_json(row))
        except (self._pa.ArrowException, OSError) as error:
            yield Unreadable(number + 1, f"nothing from here on can be read: {error}")

    def _columns(self) -> list[str]:
        return [name for name in self._file.schema_arrow.names if not self._is(name, "binary")]

    def _is(self, column: str, kind: str) -> bool:
        types = self._pa.types
        tests = [getattr(types, f"is_{prefix}{kind}") for prefix in ("", "large_")]
        arrow_type: Any = self._file.schema_arrow.field(column).type
        if types.is_dictionary(arrow_type):
            arrow_type = arrow_type.value_type
        return any(test(arrow_type) for test in tests) or (
            kind == "binary" and bool(types.is_fixed_size_binary(arrow_type))
        )


def _as_json(row: dict[str, object]) -> object:
    return orjson.loads(orjson.dumps(row, default=str))
