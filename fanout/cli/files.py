"""Whole files that a command writes at its end."""

from __future__ import annotations

import os
from pathlib import Path

from fanout.errors import UsageError


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
