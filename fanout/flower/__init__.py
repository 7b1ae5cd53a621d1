"""Flower with fanout's columns, task page and metrics: `python -P -m fanout.flower`.

Flower has no plug-in hook for columns, so `flowerconfig.py`, which Flower executes before it
builds its application, puts them in. Importing this package does not import Flower.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from fanout.errors import ConfigError
from fanout.settings import Settings

#: Executed by Flower at its start.
CONFIG_FILE = Path(__file__).with_name("flowerconfig.py")

#: Environment variable with `user:password`, without which Flower listens on loopback only.
BASIC_AUTH = "FANOUT_FLOWER_BASIC_AUTH"

__all__ = ["BASIC_AUTH", "CONFIG_FILE", "check_access", "flower_argv", "flower_env"]


def flower_argv(port: int, address: str = "127.0.0.1") -> list[str]:
    """The command that runs Flower on `address`:`port`; it needs `flower_env` as well.

    `-P` keeps the current folder off the path: a `tasks.py` or `fanout/` there shadows nothing.
    """
    return [
        sys.executable,
        "-P",
        "-m",
        "fanout.flower",
        f"--port={port}",
        f"--address={address}",
    ]


def flower_env(settings: Settings) -> dict[str, str]:
    """What the environment of `flower_argv` needs beside this process's own.

    The broker's URL goes this way because it may hold a password, and a command line is public.
    """
    return {"FANOUT_REDIS": settings.redis_url}


def check_access(address: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The `user:password` that Flower has to ask for, or None.

    Args:
        address: the address to listen on.
        environ: where FANOUT_FLOWER_BASIC_AUTH is looked up.

    Raises:
        ConfigError: others could reach `address` and nobody would ask them for a password, or
            the variable does not have the form `user:password`.
    """
    credentials = environ.get(BASIC_AUTH)
    if credentials:
        user, separator, password = credentials.partition(":")
        if not (user and separator and password):
            raise ConfigError(f"{BASIC_AUTH} must be user:password")
        return credentials
    if not _is_loopback(address):
        raise ConfigError(
            f"Flower would let anybody in at {address or 'every address'}: set {BASIC_AUTH} to "
            "user:password, or listen on 127.0.0.1"
        )
    return None


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False  # a name: nobody knows where it points to
