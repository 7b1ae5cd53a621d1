"""The same items for every client: 2 KB documents, one prompt and schema, one request body.

Imported in two environments: the standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: What `fanout sim` serves.
MODEL = "openai/gpt-oss-120b"
MAX_TOKENS = 256
PROMPT = "Read the job posting and extract what the JSON Schema describes. Answer with JSON alone."
#: Characters of one document.
DOCUMENT_CHARS = 2048

SCHEMA: dict[str, Any] = {
    "title": "Posting",
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "company": {"type": "string"},
        "remote": {"type": "boolean"},
        "salary": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
        "skills": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
    },
    "required": ["title", "company", "remote", "salary", "skills"],
    "additionalProperties": False,
}

_FILLER = "We are looking for an engineer who keeps large machines busy and small promises. "


def documents(count: int) -> Iterator[str]:
    """`count` different texts of `DOCUMENT_CHARS` characters."""
    filler = _FILLER * (DOCUMENT_CHARS // len(_FILLER) + 1)
    for number in range(count):
        yield f"Posting {number}: {filler}"[:DOCUMENT_CHARS]


def body_of(text: str) -> dict[str, Any]:
    """The chat request for one document, as fanout's `extract` sends it."""
    return {
        "model": MODEL,
        "messages": [{"role": "system", "content": PROMPT}, {"role": "user", "content": text}],
        "max_tokens": MAX_TOKENS,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "Posting", "schema": SCHEMA, "strict": True},
        },
        "temperature": 0.0,
    }
