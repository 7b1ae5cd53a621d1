"""Reading documents from files, folders, patterns and standard input, in flat memory.

What can be read:

    .jsonl .ndjson   one JSON object, or one bare JSON string, a line
    .csv .tsv        with a header row; a .csv may be separated by commas, semicolons or tabs
    .parquet         a row is a document (needs pyarrow)
    .txt .md         a file is a document
    a folder         its .txt and .md files, recursively; hidden ones and linked folders are skipped
    'a/**/*.md'      a pattern of the above, expanded here, so quote it
    -                standard input: JSON lines if its first visible character is `{`, else text,
                     where every line that is not blank is a document

Line formats may be packed (`.jsonl.gz`). All text is UTF-8; a byte order mark is dropped. A file
that is named twice is read once. A row that is no document comes out as a `BadRow` in its place,
so that every row of the input is accounted for.
"""

from fanout.inputs.count import count_hint
from fanout.inputs.document import MAX_BYTES, BadRow, Document, InputError
from fanout.inputs.fields import TEXT_FIELDS
from fanout.inputs.files import StdinFormat
from fanout.inputs.reader import read_inputs
from fanout.inputs.sources import leads_out

__all__ = [
    "MAX_BYTES",
    "TEXT_FIELDS",
    "BadRow",
    "Document",
    "InputError",
    "StdinFormat",
    "count_hint",
    "leads_out",
    "read_inputs",
]
