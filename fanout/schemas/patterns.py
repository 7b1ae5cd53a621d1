"""Regular expressions of a schema, matched in bounded time.

Python's engine can backtrack for years over a few dozen characters, and a reply is checked on the
loop that runs all requests. jsonschema_rs takes linear time, or where an expression needs to look
around or back, a bounded number of steps; a text that would take more counts as not matching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import jsonschema_rs
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

#: Steps that one match may go back, some milliseconds, and bytes of one compiled expression.
OPTIONS = jsonschema_rs.FancyRegexOptions(
    backtrack_limit=100_000, size_limit=2**20, dfa_size_limit=2**20
)
#: Keywords whose value is data.
DATA = frozenset({"const", "default", "enum", "examples"})


def patterns_in(node: object) -> Iterator[str]:
    """The regular expressions in a schema."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "pattern" and isinstance(value, str):
                yield value
            elif key == "patternProperties" and isinstance(value, dict):
                yield from value
                yield from patterns_in(list(value.values()))
            elif key not in DATA:
                yield from patterns_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from patterns_in(value)


@lru_cache(maxsize=1024)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a text holds a match; raises `ValueError` for what cannot be used."""
    found: Any = jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=OPTIONS)
    matches: Callable[[str], bool] = found.is_valid
    return matches


def _pattern(
    validator: Any, pattern: str, instance: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not matcher(pattern)(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, properties: Mapping[str, Any], instance: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, below in properties.items():
        for key, value in instance.items():
            if matcher(pattern)(key):
                yield from validator.descend(value, below, path=key, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: Any, instance: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extra = [
        key
        for key in instance
        if key not in named and not any(matcher(pattern)(key) for pattern in patterns)
    ]
    if validator.is_type(allowed, "object"):
        for key in extra:
            yield from validator.descend(instance[key], allowed, path=key)
    elif not allowed and extra:
        names, verb = ", ".join(map(repr, extra)), "was" if len(extra) == 1 else "were"
        yield ValidationError(f"Additional properties are not allowed ({names} {verb} unexpected)")


#: jsonschema's validator with these keywords in bounded time. `unevaluatedProperties` is left: it
#: looks at patterns too, so `needs_quick` tells where it cannot be used.
BoundedValidator: Any = extend(
    Draft202012Validator,
    {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    },
)


def needs_quick(node: object) -> bool:
    """Whether a schema has patterns of properties and asks which properties are unevaluated."""
    return _has(node, "patternProperties") and _has(node, "unevaluatedProperties")


def _has(node: object, keyword: str) -> bool:
    if isinstance(node, dict):
        return keyword in node or any(
            _has(value, keyword) for key, value in node.items() if key not in DATA
        )
    return isinstance(node, list) and any(_has(value, keyword) for value in node)
