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


class Restartable:
    """A server that keeps its data over restarts, on the same port."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._port = _free_port()
        self._folder = folder
        self._command = [
            *(str(binaries()[kind]), "--bind", "127.0.0.1", "--port", str(self._port)),
            *("--dir", str(folder), "--save", "", "--appendonly", "yes"),
        ]
        self.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        _wait_for(self._process, self._port)

    def kill(self) -> None:
        """End it as a power cut does: what it has not written to disk is lost."""
        self._process.kill()
        self._process.wait(_DEADLINE_S)

    def forget(self) -> None:
        """Delete its data, while it does not run."""
        for data in self._folder.iterdir():
            shutil.rmtree(data) if data.is_dir() else data.unlink()

    def stop(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(_DEADLINE_S)


@contextmanager
def restartable_server(kind: str) -> Iterator[Restartable]:
    """A server that can be restarted; it ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        server = Restartable(kind, Path(folder))
        try:
            yield server
        finally:
            server.stop()
