"""How many documents inputs hold, where that is cheap to know."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fanout.inputs.files import open_binary
from fanout.inputs.parquet import ParquetRows
from fanout.inputs.sources import File, Filters, Folder, Source, resolve, walk

#: Larger files are not read just to count.
_COUNTED_BYTES = 256 * 1024 * 1024
_BLOCK = 1 << 20


def count_hint(
    paths: Sequence[str], *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> int | None:
    """About how many rows `read_inputs` will yield; None where it takes reading to know.

    A hint for a progress bar: blank lines count too. None for standard input, packed files and
    line files over 256 MiB.

    Raises:
        InputError: as `read_inputs`.
    """
    filters = Filters(include, exclude)
    total = 0
    for source in resolve(paths, filters):
        found = _count(source, filters)
        if found is None:
            return None
        total += found
    return total


def _count(source: Source, filters: Filters) -> int | None:
    if isinstance(source, Folder):
        return sum(1 for _ in walk(source, filters))
    if not isinstance(source, File) or source.packed:
        return None
    if source.format == "text":
        return 1
    if source.format == "parquet":
        with ParquetRows(source.path) as table:
            return table.count
    if os.path.getsize(source.path) > _COUNTED_BYTES:
        return None
    if source.format == "jsonl":
        return _lines(source, quoted=False)
    return max(_lines(source, quoted=True) - 1, 0)  # the header


def _lines(file: File, *, quoted: bool) -> int:
    """Lines of a file; with `quoted`, those inside double quotes do not count."""
    lines = 0
    inside = 0
    last = b"\n"
    with open_binary(file) as stream:
        while block := stream.read(_BLOCK):
            parts = block.split(b'"') if quoted else [block]
            lines += sum(part.count(b"\n") for part in parts[inside::2])
            inside = (inside + len(parts) - 1) % 2
            last = block[-1:]
    return lines + (last != b"\n")
