"""How deep a JSON value may be nested to travel through everything here."""

from __future__ import annotations

#: Levels; what writes and reads messages and records has limits of its own, from about 250 up.
MAX_DEPTH = 100


def too_deep(value: object, limit: int = MAX_DEPTH) -> bool:
    """Whether a JSON value is nested over `limit` levels deep."""
    level = [value]
    for _ in range(limit + 1):
        inner = [item for item in level if isinstance(item, (dict, list))]
        if not inner:
            return False
        level = [
            child for item in inner for child in (item.values() if isinstance(item, dict) else item)
        ]
    return True
