"""Whole files that a command writes at its end."""

from __future__ import annotations

import os
from pathlib import Path

from fanout.errors import UsageError


def check_free(path: Path | None, *, overwrite: bool) -> None:
    """Raise `UsageError` if `path` is there already and shall not be replaced."""
    if path is not None and path.exists() and not overwrite:
        raise UsageError(f"{path} exists already: --overwrite replaces it")


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path`, all or nothing.

    Raises:
        UsageError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
