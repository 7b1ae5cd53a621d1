"""Writing records where they last, and reading them back.

    out.jsonl .ndjson   one record a line, each batch synced to the disk
    out.parquet         a row is a record (needs pyarrow); gathered in out.parquet.partial.jsonl,
                        which is as durable, and put in place at the end
    -                   standard output, one record a line

A record has the keys of `fanout.wire.Record`.
"""

from fanout.outputs.jsonl import OutputClosed
from fanout.outputs.opening import check_output, open_output
from fanout.outputs.reading import read_records
from fanout.outputs.writer import OutputError, OutputFailed, RecordWriter

__all__ = [
    "OutputClosed",
    "OutputError",
    "OutputFailed",
    "RecordWriter",
    "check_output",
    "open_output",
    "read_records",
]
