"""Secrets that lie in files, as container platforms hand them out."""

from __future__ import annotations

from pathlib import Path

from fanout.errors import ConfigError


def secret_in(path: Path, setting: str) -> str:
    """What the file holds, without white space around it.

    Args:
        path: the file.
        setting: the setting that names it, for the message.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read {setting} {path}: {reason}") from error
