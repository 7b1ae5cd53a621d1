"""Changes to fanout.toml that keep its comments and its form."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

from fanout.errors import ConfigError
from fanout.settings import CONFIG_FILE


@dataclass(frozen=True, slots=True)
class Change:
    """What was changed, for a person: `- old` and `+ new` below the table's name."""

    path: Path
    table: str
    old: str | None
    new: str

    def lines(self) -> list[str]:
        """The change in the form of a diff."""
        removed = [f"- {self.old}"] if self.old is not None else []
        return [f"{self.path}: [{self.table}]", *removed, f"+ {self.new}"]


def config_path() -> Path:
    """The configuration file: the one that FANOUT_CONFIG names, or ./fanout.toml."""
    return Path(os.environ.get("FANOUT_CONFIG") or CONFIG_FILE)


def names_endpoint(path: Path, name: str) -> bool:
    """Whether the file has a table for the endpoint; a missing file has none."""
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False
    endpoints = document.get("endpoint")
    return isinstance(endpoints, dict) and isinstance(endpoints.get(name), dict)


def with_concurrency(path: Path, name: str, concurrency: int) -> tuple[str, Change]:
    """The file's text with another N for one endpoint, and what is changed in it.

    Raises:
        ConfigError: the file cannot be read, or has no such endpoint.
    """
    try:
        document = tomlkit.parse(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    if not names_endpoint(path, name):
        raise ConfigError(f"{path} has no endpoint {name!r}")
    table = document["endpoint"][name]
    before = table.get("concurrency")
    table["concurrency"] = concurrency
    old = f"concurrency = {before.as_string()}" if before is not None else None
    change = Change(path, f"endpoint.{name}", old, f"concurrency = {concurrency}")
    return tomlkit.dumps(document), change
