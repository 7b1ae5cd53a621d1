"""A schema, compiled once, and validation against it.

The dialect is JSON Schema 2020-12, whatever `$schema` says; `format` is not checked, as usual in
that dialect. References must stay inside the schema: nothing is ever fetched.

Two libraries share the work: jsonschema_rs says in a microsecond that a reply is good, and what it
does not accept goes to jsonschema, whose errors are what a model is told.

Regular expressions are matched by the first of them for both: see `fanout.schemas.patterns`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Self

import jsonschema_rs
import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError as JsonSchemaError
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from fanout.depth import too_deep
from fanout.errors import UsageError
from fanout.schemas.patterns import DATA, OPTIONS, BoundedValidator, needs_quick, patterns_in
from fanout.schemas.reply import (
    MAX_PROBLEMS,
    InvalidReply,
    check_finite,
    clip,
    parse_reply,
    path_of,
    problems_of,
)
from fanout.wire import sha256_of

#: What is wrong with a value.
Problems = Callable[[object], list[str]]


class SchemaError(UsageError):
    """A schema cannot be loaded or used."""


@dataclass(frozen=True)
class OutputSchema:
    """What a reply has to look like. Equal schemas have the same name and digest.

    Attributes:
        name: at most 64 letters, digits, `_` and `-`, as servers want it.
        json_schema: JSON Schema 2020-12 of an object; travels to the workers, so do not change it.
        sha256: hex digest of its canonical JSON.
        model: the pydantic model that it was made of, where there is one: only in the process that
            loaded it. `schema.model.model_validate(record["data"])` gives a typed record.
    """

    name: str
    sha256: str
    json_schema: dict[str, Any] = field(compare=False, repr=False)
    model: type[BaseModel] | None = field(default=None, compare=False)
    _problems: Problems = field(default=lambda value: [], compare=False, repr=False)
    _accepts: Callable[[object], bool] = field(
        default=lambda value: False, compare=False, repr=False
    )

    @classmethod
    def from_json_schema(cls, schema: object, *, name: str | None = None) -> Self:
        """Compile a JSON Schema.

        Args:
            schema: the schema; it is copied.
            name: by default the schema's `title`.

        Raises:
            SchemaError: it is not valid, has references that lead out of it or nowhere, or does
                not ask for an object.
        """
        own = _checked(schema)
        title = own.get("title")
        named = name or (title if isinstance(title, str) else "")
        quick = _compiled(own)
        if needs_quick(own):
            problems: Problems = partial(_problems_of_quick, quick)
        else:
            # An empty registry: jsonschema's default one would fetch what it does not know.
            slow = BoundedValidator(own, registry=Registry())
            problems = partial(_problems_of_slow, slow)
        return cls(sanitised(named), sha256_of(own), own, None, problems, _quick(quick))

    @classmethod
    def from_model(cls, model: type[BaseModel]) -> Self:
        """The schema of a pydantic model.

        Raises:
            SchemaError: the model has no JSON Schema of an object.
        """
        try:
            schema = model.model_json_schema()
        except Exception as error:
            why = clip(str(error).partition("\n")[0])
            raise SchemaError(f"{model.__name__} has no JSON Schema: {why}") from error
        plain = cls.from_json_schema(schema, name=model.__name__)
        return cls(
            plain.name, plain.sha256, plain.json_schema, model, plain._problems, plain._accepts
        )

    def validate(self, value: object) -> object:
        """The value itself, a JSON value, if it follows the schema.

        Where the model is at hand, its own validators are asked too.

        Raises:
            InvalidReply: it does not; says what is wrong, for the model to mend.
        """
        if too_deep(value):
            raise InvalidReply(["the reply is nested too deeply"])
        check_finite(value)
        self._hold_against(value)
        return value

    def validate_json(self, text: str | bytes) -> object:
        """The JSON value of a reply; see `parse_reply` for what is tolerated.

        Raises:
            InvalidReply: it is no JSON, or not what the schema asks for.
        """
        value = parse_reply(text)
        self._hold_against(value)
        return value

    def _hold_against(self, value: object) -> None:
        try:
            if not self._accepts(value) and (problems := self._problems(value)):
                raise InvalidReply(problems)
            if self.model is not None:
                # In JSON mode, or a strict model would refuse the string of a date.
                self.model.model_validate_json(to_json(value))
        except ValidationError as error:
            raise InvalidReply(_model_problems(error)) from None
        except RecursionError:
            raise InvalidReply(["the reply is nested too deeply"]) from None


def sanitised(name: str) -> str:
    """A name as servers want it."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", name).strip("_")[:64] or "output"


def _checked(schema: object) -> dict[str, Any]:
    try:
        own = orjson.loads(orjson.dumps(schema))
        if not isinstance(own, dict):
            raise SchemaError("a JSON Schema must be a JSON object")
        Draft202012Validator.check_schema(own)
        _check_references(own)
        _check_object(own)
    except TypeError as error:  # orjson's, JSONEncodeError included
        raise SchemaError(f"the JSON Schema cannot be written as JSON: {error}") from error
    except JsonSchemaError as error:
        where = path_of(error.absolute_path).replace("the reply", "its top")
        raise SchemaError(
            f"this is not a valid JSON Schema, at {where}: {clip(error.message)}"
        ) from error
    except RecursionError:
        raise SchemaError("the JSON Schema is nested too deeply") from None
    return own


def _compiled(schema: dict[str, Any]) -> Any:
    """The validator of jsonschema_rs; None where it cannot do without the other library."""
    try:
        return jsonschema_rs.Draft202012Validator(
            schema, validate_formats=False, offline=True, pattern_options=OPTIONS
        )
    except ValueError as error:
        if pattern := next(patterns_in(schema), None):
            raise SchemaError(
                "the JSON Schema has a regular expression that cannot be used, such as one of "
                f"Python's own form ({clip(pattern)!r} is its first): {_first_line(error)}"
            ) from None
        return None


def _quick(validator: Any) -> Callable[[object], bool]:
    """Whether a value is surely what the schema asks for; False where that is not known."""

    def accepts(value: object) -> bool:
        try:
            return validator is not None and validator.is_valid(value)
        except ValueError:  # no JSON, or too deep
            return False

    return accepts


def _problems_of_slow(validator: Any, value: object) -> list[str]:
    return problems_of(validator.iter_errors(value))


def _problems_of_quick(validator: Any, value: object) -> list[str]:
    try:
        first = list(islice(validator.iter_errors(value), MAX_PROBLEMS))
    except ValueError as error:
        return [f"the reply cannot be checked: {clip(str(error))}"]
    return [f"{path_of(error.instance_path)}: {clip(error.message)}" for error in first]


def _first_line(error: ValueError) -> str:
    return clip(str(error).partition("\n")[0])


def _check_references(schema: dict[str, Any]) -> None:
    resolver = _resolver(schema)
    for reference in set(_references(schema)):
        if not reference.startswith("#"):
            raise SchemaError(
                f"the JSON Schema refers to {reference!r} outside of itself: nothing is fetched, "
                "so copy it into $defs"
            )
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise SchemaError(
                f"the JSON Schema refers to {reference!r}, which it does not hold"
            ) from None


def _resolver(schema: dict[str, Any]) -> Any:
    return Registry().resolver_with_root(DRAFT202012.create_resource(schema))


def _references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            elif key not in DATA:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _check_object(schema: dict[str, Any]) -> None:
    """A server's constrained decoding and our records want an object at the top.

    A recursive pydantic model has only a `$ref` there, which is followed.
    """
    resolver = _resolver(schema)
    top: Any = schema
    followed: set[str] = set()
    while isinstance(top, dict) and "type" not in top and "$ref" in top:
        if top["$ref"] in followed:
            break
        followed.add(top["$ref"])
        top = resolver.lookup(top["$ref"]).contents
    if not (isinstance(top, dict) and top.get("type") == "object"):
        raise SchemaError('the JSON Schema must ask for an object: "type": "object" at its top')


def _model_problems(error: ValidationError) -> list[str]:
    details = error.errors(include_url=False, include_input=False, include_context=False)
    told = [f"{path_of(item['loc'])}: {clip(item['msg'])}" for item in details[:MAX_PROBLEMS]]
    return told if len(details) == len(told) else [*told[:-1], f"{told[-1]} (and more)"]
