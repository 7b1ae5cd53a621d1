"""From what a person writes after --schema to a schema."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from hashlib import sha256
from types import ModuleType
from typing import Any

import orjson
from pydantic import BaseModel

from fanout.registry import import_from_here
from fanout.schemas.reply import clip
from fanout.schemas.schema import OutputSchema, SchemaError

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def load_schema(ref: str) -> OutputSchema:
    """Load a schema.

    Args:
        ref: a JSON Schema file (`posting.json`), a pydantic model in a module (`postings:Posting`;
            the current folder is searched last, after what is installed), or a pydantic model in a
            file (`path/to/postings.py:Posting`). The latter two run the module's code.

    Raises:
        SchemaError: it cannot be found, loaded or used; says which.
    """
    if ref.lower().endswith(".json"):
        return _from_file(ref)
    place, _, attribute = ref.rpartition(":")
    if place.endswith(".py") and attribute:
        return _from_model(_import_file(place), place, attribute)
    if _MODULE.fullmatch(place) and attribute:
        return _from_model(_import_module(place), place, attribute)
    raise SchemaError(
        f"{ref!r} names no schema: give a .json file, module:Model or path/to/file.py:Model"
    )


def _from_file(path: str) -> OutputSchema:
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        raise SchemaError(f"the schema {path} does not exist") from None
    except OSError as error:
        raise SchemaError(f"the schema {path} cannot be read: {error.strerror}") from error
    try:
        schema = orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise SchemaError(f"the schema {path} is not JSON: {error}") from error
    titled = isinstance(schema, dict) and isinstance(schema.get("title"), str)
    stem = os.path.splitext(os.path.basename(path))[0]
    try:
        return OutputSchema.from_json_schema(schema, name=None if titled else stem)
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from error


def _from_model(module: ModuleType, place: str, attribute: str) -> OutputSchema:
    found: Any = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            # The file tells when an installed module hides one in the current folder.
            file = getattr(module, "__file__", None) or place
            raise SchemaError(f"{place} ({file}) has no {attribute}")
        found = getattr(found, name)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise SchemaError(f"{attribute} in {place} is not a pydantic model")
    try:
        return OutputSchema.from_model(found)
    except SchemaError as error:
        raise SchemaError(f"{place}:{attribute}: {error}") from error


def _import_module(name: str) -> ModuleType:
    try:
        module: ModuleType = import_from_here(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise SchemaError(
                f"there is no module {name}, neither installed nor in the current folder"
            ) from None
        raise _failed(name, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error
    return module


def _import_file(path: str) -> ModuleType:
    if not os.path.isfile(path):
        raise SchemaError(f"the file {path} does not exist")
    real = os.path.realpath(path)
    # A name of its own: two files of one name must not be taken for each other, nor for what is
    # installed. It has to be in sys.modules for pydantic to resolve annotations.
    name = f"_fanout_schema_{sha256(real.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, real)
    if spec is None or spec.loader is None:
        raise SchemaError(f"the file {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = os.path.dirname(real)
    if folder not in sys.path:
        sys.path.append(folder)  # for the file's own imports; last, so that it shadows nothing
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(path, error) from error
    return module


def _failed(place: str, error: BaseException) -> SchemaError:
    return SchemaError(f"importing {place} failed: {type(error).__name__}: {clip(str(error))}")
