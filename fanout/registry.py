"""Finding task kinds: by entry point (group `fanout.tasks`) or as `module:Kind`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fanout.errors import PluginError, UnknownTask
from fanout.task import Task

GROUP = "fanout.tasks"


def import_from_here(module: str) -> Any:
    """Import a user's module with the current folder *appended* to the path.

    Appended, never first: a `tasks.py` or `fanout/` in the user's folder must not shadow what is
    installed.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    return importlib.import_module(module)


def load_kinds(extra: Iterable[str] = ()) -> dict[str, type[Task]]:
    """All installed task kinds by name, and those named as `module:Kind`.

    Raises:
        PluginError: one cannot be imported or is no task kind; says which.
    """
    found: dict[str, type[Task]] = {}
    for entry in entry_points(group=GROUP):
        found[entry.name] = _checked(entry.name, _load(entry))
    for reference in extra:
        kind = _checked(reference, _load_reference(reference))
        found[kind.name] = kind
    return found


def load_kind(name: str) -> type[Task]:
    """The installed task kind of that name, or the one at `module:Kind`; imports no other.

    Raises:
        UnknownTask: there is none.
        PluginError: it cannot be imported or is no task kind.
    """
    if ":" in name:
        return _checked(name, _load_reference(name))
    entries = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in entries:
        raise UnknownTask(f"there is no task kind {name!r}; installed: {', '.join(entries)}")
    return _checked(name, _load(entries[name]))


def _load(entry: EntryPoint) -> object:
    try:
        return entry.load()
    except Exception as error:
        raise PluginError(f"task kind {entry.name} ({entry.value}): {error!r}") from error


def _load_reference(reference: str) -> object:
    module, separator, attribute = reference.partition(":")
    if not (module and separator and attribute):
        raise PluginError(f"{reference!r} names no task kind: write module:Kind")
    try:
        return getattr(import_from_here(module), attribute)
    except Exception as error:
        raise PluginError(f"task kind {reference}: {error!r}") from error


def _checked(reference: str, kind: object) -> type[Task]:
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise PluginError(f"task kind {reference} is not a subclass of fanout.Task")
    name = getattr(kind, "name", None)
    if not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_.-]*", name)):
        raise PluginError(f"task kind {reference} has no usable `name`")
    for model in (kind.Params, kind.Payload):
        if not issubclass(model, BaseModel):
            raise PluginError(f"task kind {reference}: Params and Payload must be pydantic models")
    return kind
