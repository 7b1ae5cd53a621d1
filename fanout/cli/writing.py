"""Records into an output, durably."""

from __future__ import annotations

from collections.abc import Sequence

from fanout.outputs import RecordWriter
from fanout.store import Records
from fanout.wire import Record


def write(writer: RecordWriter, batch: Sequence[Record]) -> None:
    """Write a batch and return when it is on disk: Redis forgets it afterwards."""
    if isinstance(batch, Records):
        writer.write_lines(batch.lines)
    else:
        writer.write([record.model_dump(mode="json") for record in batch])
    writer.flush()
