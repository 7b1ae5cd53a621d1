"""From a model's reply to a JSON value, and the words for what is wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import orjson
from jsonschema.exceptions import ValidationError, best_match

from fanout.depth import MAX_DEPTH, too_deep

#: Problems told at once; a model mends a few named ones better than a long list.
MAX_PROBLEMS = 5

_SHOWN_CHARS = 120
_FENCE = re.compile(r"```[a-zA-Z0-9]*[ \t]*\r?\n(.*?)\r?\n?```", re.DOTALL)
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class InvalidReply(ValueError):
    """A reply is not what the schema asks for; its text is fit to be sent back to the model.

    Attributes:
        problems: `path: problem`, at most five, in the order of the schema.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def parse_reply(text: str | bytes) -> object:
    """The JSON value of a reply.

    A Markdown code fence around the whole reply is taken off; nothing else is mended: prose beside
    the JSON, NaN, infinity and nesting over 100 levels are refused: what writes and reads a record
    later on has limits of its own.

    Raises:
        InvalidReply: it is not JSON.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise InvalidReply([f"the reply is not UTF-8 at byte {error.start + 1}"]) from None
    text = text.strip().removeprefix("\ufeff")
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    if not text.strip():
        raise InvalidReply(["the reply is empty; answer with one JSON object"])
    try:
        value: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        near = text[max(error.pos - 20, 0) : error.pos + 20]
        raise InvalidReply(
            [f"the reply is not JSON: {error.msg} at character {error.pos + 1}, near {near!r}"]
        ) from None
    if text.count("{") + text.count("[") > MAX_DEPTH and too_deep(value):
        raise InvalidReply([f"the reply is nested over {MAX_DEPTH} levels deep"])
    return value


def check_finite(value: object) -> None:
    """Refuse the floats that JSON cannot write; a parsed reply has none.

    Raises:
        InvalidReply: there is one.
    """
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise InvalidReply([f"{item} is not a JSON number"])
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple)):
            pending.extend(item)


def problems_of(errors: Iterable[ValidationError]) -> list[str]:
    """The first few errors of jsonschema as `path: problem`."""
    first = list(islice(errors, MAX_PROBLEMS + 1))
    told = [_problem(error) for error in first[:MAX_PROBLEMS]]
    return told if len(first) == len(told) else [*told[:-1], f"{told[-1]} (and more)"]


def path_of(keys: Iterable[str | int]) -> str:
    """A path as people write it: `items[3].price`; the top is `the reply`."""
    path = ""
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        elif _PLAIN_KEY.fullmatch(key):
            path += f".{key}" if path else key
        else:
            path += f"[{_shown(key)}]"
    return path or "the reply"


def _problem(error: ValidationError) -> str:
    # Of a failed anyOf the branch that came nearest says more than that none of them fits.
    nearest = best_match([error]) or error
    wording = _WORDINGS.get(nearest.validator)
    told = wording(nearest) if wording else clip(nearest.message)
    return f"{path_of(nearest.absolute_path)}: {told}"


def _type(error: ValidationError) -> str:
    wanted = error.validator_value
    names = wanted if isinstance(wanted, str) else " or ".join(wanted)
    return f"must be {names}, is {_shown(error.instance)}"


def _alternatives(error: ValidationError) -> str:
    """Of `anyOf` and `oneOf`; a value that may be null is by far the most common."""
    branches = error.context or []
    if not branches or any(e.validator != "type" or e.relative_path for e in branches):
        return clip(error.message)
    types = dict.fromkeys(str(branch.validator_value) for branch in branches)
    return f"must be {' or '.join(types)}, is {_shown(error.instance)}"


def _required(error: ValidationError) -> str:
    # One error for each missing name, and only the message says which.
    named = re.match(r"(.+) is a required property", error.message, re.DOTALL)
    return f"{named[1]} is missing" if named else clip(error.message)


_WORDINGS: dict[object, Callable[[Any], str]] = {
    "type": _type,
    "required": _required,
    "anyOf": _alternatives,
    "oneOf": _alternatives,
    "enum": lambda e: f"must be one of {_shown(e.validator_value, 400)}, is {_shown(e.instance)}",
    "const": lambda e: f"must be {_shown(e.validator_value)}, is {_shown(e.instance)}",
    "pattern": lambda e: f"{_shown(e.instance)} does not match {e.validator_value}",
    "minimum": lambda e: f"must be at least {e.validator_value}, is {_shown(e.instance)}",
    "maximum": lambda e: f"must be at most {e.validator_value}, is {_shown(e.instance)}",
    "minLength": lambda e: f"needs at least {e.validator_value} characters",
    "maxLength": lambda e: f"has {len(e.instance)} characters, at most {e.validator_value} allowed",
    "minItems": lambda e: f"has {len(e.instance)} items, needs at least {e.validator_value}",
    "maxItems": lambda e: f"has {len(e.instance)} items, at most {e.validator_value} allowed",
    "uniqueItems": lambda e: "has an item twice",
}


def _shown(value: object, chars: int = _SHOWN_CHARS) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list) and chars == _SHOWN_CHARS:
        return "an array"
    return clip(orjson.dumps(value, default=str).decode(), chars)


def clip(text: str, chars: int = 2 * _SHOWN_CHARS) -> str:
    """The text, cut where it is long: a message must not send a whole document back."""
    return text if len(text) <= chars else text[: chars - 1] + "…"
