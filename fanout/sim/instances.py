"""Instances of a JSON Schema, as long as they are asked to be.

What a schema allows is generated once, a few different ways; the strings that may be of any length
are left open in it, and filled for each reply.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import rstr
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError

from fanout.errors import UsageError
from fanout.sim.text import prose

_VARIANTS = 8
_ATTEMPTS = 60
#: From here on only what is required; a little later nothing of one's own will.
_DEEP = 6
_TOO_DEEP = 40
_FORMATS = {
    "date": "2026-04-{day:02}",
    "date-time": "2026-04-{day:02}T09:30:00Z",
    "time": "09:30:{day:02}Z",
    "email": "person{day}@example.org",
    "uri": "https://example.org/{day}",
    "url": "https://example.org/{day}",
    "uuid": "6f1d3c52-8a0b-4c1e-9d27-0000000000{day:02}",
    "ipv4": "192.0.2.{day}",
    "ipv6": "2001:db8::{day}",
    "hostname": "host{day}.example.org",
    "duration": "P{day}D",
}
#: A place left open: a private character, which no schema has.
_MARK = "\ue000"
_OPEN = re.compile(f'"{_MARK}(\\d+){_MARK}"')


@dataclass(frozen=True, slots=True)
class _Template:
    """JSON text in pieces, with a string to be filled in after each piece but the last."""

    pieces: tuple[str, ...]
    slots: tuple[tuple[int, float], ...]  # shortest and longest
    least: int
    most: float

    def filled(self, sizes: Mapping[int, int], variant: int) -> str:
        """The instance, with strings of these sizes."""
        parts = [self.pieces[0]]
        for at, piece in enumerate(self.pieces[1:]):
            parts += ['"', prose(sizes[at], variant * 31 + at * 17), '"', piece]
        return "".join(parts)


class Instances:
    """Valid instances of one schema.

    Args:
        schema: a JSON Schema; `$ref` within itself only.
        seed: of what is left to choice.

    Raises:
        UsageError: it is no schema, or none of the instances tried was valid.
    """

    def __init__(self, schema: Any, seed: int = 0) -> None:
        try:
            Draft202012Validator.check_schema(schema)
            self._templates = list(_templates(schema, seed))
        except (SchemaError, re.error, LookupError, TypeError, ValueError) as error:
            raise UsageError(f"the schema cannot be followed: {error}") from error
        if not self._templates:
            raise UsageError("the schema cannot be followed: no instance tried was valid")

    def length(self, variant: int, characters: int) -> int:
        """The length nearest to `characters` that this variant can have."""
        template = self._templates[variant % len(self._templates)]
        return int(min(max(characters, template.least), template.most))

    def render(self, variant: int, characters: int) -> str:
        """Instance as JSON text of `length(variant, characters)` characters."""
        template = self._templates[variant % len(self._templates)]
        left = int(min(max(characters, template.least), template.most)) - template.least
        open_slots = sorted(range(len(template.slots)), key=lambda at: template.slots[at][1])
        sizes = {}
        # The shortest first, so that what one cannot take is shared by the longer ones.
        for position, at in enumerate(open_slots):
            shortest, longest = template.slots[at]
            extra = min(longest - shortest, left // (len(open_slots) - position))
            sizes[at] = int(shortest + extra)
            left -= int(extra)
        return template.filled(sizes, variant)


def _templates(schema: Any, seed: int) -> list[_Template]:
    found: list[_Template] = []
    for attempt in range(_ATTEMPTS):
        maker = _Maker(schema, random.Random(f"{seed}/{attempt}"))  # noqa: S311 - no secret
        try:
            template = maker.template()
        except RecursionError:
            continue
        if template not in found and maker.is_valid(template):
            found.append(template)
        if len(found) == _VARIANTS or (found and attempt >= 2 * _VARIANTS):
            break
    return found


class _Maker:
    """Makes one instance; strings of any length become places left open."""

    def __init__(self, schema: Any, dice: random.Random) -> None:
        self._root = schema
        self._dice = dice
        self._strings = rstr.Rstr(dice)
        self._slots: list[tuple[int, float]] = []

    def template(self) -> _Template:
        value = self._value(self._root, 0)
        found = _OPEN.split(orjson.dumps(value).decode())
        pieces, order = tuple(found[::2]), [int(n) for n in found[1::2]]
        slots = tuple(self._slots[n] for n in order)
        fixed = sum(map(len, pieces)) + 2 * len(slots)
        return _Template(
            pieces, slots, fixed + sum(s for s, _ in slots), fixed + sum(s for _, s in slots)
        )

    def is_valid(self, template: _Template) -> bool:
        try:
            filled = template.filled({at: slot[0] for at, slot in enumerate(template.slots)}, 0)
            checker = Draft202012Validator.FORMAT_CHECKER
            Draft202012Validator(self._root, format_checker=checker).validate(orjson.loads(filled))
        except ValidationError:
            return False
        return True

    def _value(self, schema: Any, depth: int) -> Any:
        if depth > _TOO_DEEP:
            raise RecursionError
        if schema is True or schema == {}:
            return self._open(0, math.inf)
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._dice.choice(schema["enum"])
        for key in ("anyOf", "oneOf"):
            if options := schema.get(key):
                rest = {name: value for name, value in schema.items() if name != key}
                return self._value(
                    _merged(rest, self._resolved(self._option(options, depth))), depth
                )
        kind = self._kind(schema, depth)
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "integer" | "number":
                return self._number(schema, kind == "integer")
            case "boolean":
                return self._dice.random() < 0.5
            case "null":
                return None
            case _:
                return self._string(schema)

    def _resolved(self, schema: Any) -> dict[str, Any]:
        """The schema with its `$ref` and `allOf` taken in."""
        if schema is False:
            raise ValueError("nothing is an instance of false")
        found: dict[str, Any] = dict(schema) if schema is not True else {}
        for _ in range(_TOO_DEEP):
            if "$ref" in found:
                target = found.pop("$ref")
                found = _merged(self._target(target), found)
            elif "allOf" in found:
                for part in found.pop("allOf"):
                    found = _merged(found, self._resolved(part))
            else:
                return found
        raise RecursionError

    def _target(self, reference: str) -> dict[str, Any]:
        if not reference.startswith("#"):
            raise ValueError(f"$ref {reference} leads out of the schema")
        found: Any = self._root
        for part in reference[1:].strip("/").split("/") if len(reference) > 1 else ():
            name = part.replace("~1", "/").replace("~0", "~")
            found = found[int(name)] if isinstance(found, list) else found[name]
        target: dict[str, Any] = {} if found is True else dict(found)
        return target

    def _option(self, options: list[Any], depth: int) -> Any:
        if depth <= _DEEP:
            # A reply in which something is said: null only where there is nothing else.
            said = [one for one in options if one != {"type": "null"}]
            return self._dice.choice(said or options)
        return min(options, key=lambda one: len(orjson.dumps(one)) + 10_000 * ("$ref" in one))

    def _kind(self, schema: dict[str, Any], depth: int) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            said = [one for one in kind if one != "null"] if depth <= _DEEP else kind[-1:]
            return str(self._dice.choice(said or kind))
        if kind is not None:
            return str(kind)
        if "properties" in schema or "required" in schema or "additionalProperties" in schema:
            return "object"
        if "items" in schema or "prefixItems" in schema:
            return "array"
        numeric = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
        return "number" if numeric & set(schema) else "string"

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        most = schema.get("maxProperties", math.inf)
        made: dict[str, Any] = {}
        optional = [name for name in properties if name not in required]
        for name in [name for name in properties if name in required] + optional:
            if name in optional and (depth >= _DEEP or len(made) >= most):
                continue
            made[name] = self._value(properties[name], depth + 1)
        for name in required:
            if name not in made:
                made[name] = self._value(schema.get("additionalProperties", True), depth + 1)
        wanted = schema.get("minProperties", 0)
        extra = schema.get("additionalProperties", True)
        if not properties and extra is not False and depth < _DEEP:
            wanted = max(wanted, min(2, most))
        while len(made) < wanted:
            made[f"key_{len(made) + 1}"] = self._value(extra, depth + 1)
        # In the schema's order, as a server's grammar would have it.
        return {name: made[name] for name in [*properties, *made] if name in made}

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        made = [self._value(one, depth + 1) for one in schema.get("prefixItems", ())]
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", math.inf)
        items = schema.get("items", True)
        if items is False:
            return made
        wanted = least if depth >= _DEEP else max(least, self._dice.randint(1, 4))
        unique = schema.get("uniqueItems", False)
        for _ in range(_ATTEMPTS):
            if len(made) >= min(wanted, most):
                break
            one = self._value(items, depth + 1)
            if not (unique and one in made):
                made.append(one)
        return made[: int(min(len(made), most))]

    def _number(self, schema: dict[str, Any], whole: bool) -> float | int:
        step = schema.get("multipleOf", 1 if whole else None)
        unit = step or 0.01
        low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
        high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
        if low == -math.inf:
            low = min(0, high - 100 * unit) if high < math.inf else 0
        if high == math.inf:
            high = low + 100 * unit
        first, last = math.ceil(low / unit), math.floor(high / unit)
        if low == schema.get("exclusiveMinimum") and first * unit <= low:
            first += 1
        if high == schema.get("exclusiveMaximum") and last * unit >= high:
            last -= 1
        if first > last:
            return float(low + high) / 2
        value = self._dice.randint(first, last) * unit
        return int(value) if whole else round(value, 6)

    def _string(self, schema: dict[str, Any]) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        if pattern := schema.get("pattern"):
            made = ""
            for _ in range(_ATTEMPTS):
                made = self._strings.xeger(pattern)
                if least <= len(made) <= most and re.search(pattern, made):
                    break
            return made
        if (form := schema.get("format")) in _FORMATS:
            return _FORMATS[form].format(day=self._dice.randint(1, 28))
        return self._open(least, most)

    def _open(self, least: int, most: float) -> str:
        """A string to be filled in later; a few words at least where that may be."""
        shortest = int(min(max(least, self._dice.randint(8, 24)), most))
        self._slots.append((shortest, most))
        return f"{_MARK}{len(self._slots) - 1}{_MARK}"


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both schemas at once, as far as a generator needs it."""
    merged = {**first, **second}
    for key in ("properties", "$defs"):
        if key in first and key in second:
            merged[key] = {**first[key], **second[key]}
    if "required" in first and "required" in second:
        merged["required"] = list(dict.fromkeys([*first["required"], *second["required"]]))
    for key, pick in (("minimum", max), ("maximum", min), ("minLength", max), ("maxLength", min)):
        if key in first and key in second:
            merged[key] = pick(first[key], second[key])
    return merged
