"""Real servers for integration tests: a fresh Valkey or Redis on a free port of 127.0.0.1."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from fanout.local.processes import LocalError
from fanout.local.valkey import find_server

_DEADLINE_S = 30.0


def binaries() -> dict[str, Path]:
    """The servers present here, by kind: `valkey` (the embedded one) and `redis` (on PATH)."""
    found: dict[str, Path] = {}
    with suppress(LocalError):
        found["valkey"] = find_server()
    if path := shutil.which("redis-server"):
        found["redis"] = Path(path)
    return found


@contextmanager
def running_server(kind: str, *options: str) -> Iterator[str]:
    """The URL of an empty server that ends with the block.

    Args:
        kind: one of `binaries()`.
        options: further ones for its command line.
    """
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        process = subprocess.Popen(
            [
                binaries()[kind],
                *("--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", ""),
                *options,
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for(process, port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait(_DEADLINE_S)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    with redis.Redis(port=port) as client:
        while True:
            try:
                client.ping()
                return
            except (redis.ConnectionError, redis.TimeoutError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
