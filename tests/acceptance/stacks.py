"""A stack that runs, and the model server it asks."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import closed_port, environment, until


@dataclass(frozen=True)
class Stack:
    """A running `fanout up` against the test's model server, and the folder it runs in."""

    folder: Path
    model_port: int
    log: Path

    def asked(self) -> int:
        """How many requests the model server was sent, once nothing is in flight any more."""
        until(lambda: self._get("/stats")["now"] == 0, "nothing is in flight")
        told: dict[str, int] = self._get("/stats")
        return told["asked"]

    def documents(self, since: int) -> list[str]:
        """The ends of the prompts of those requests.

        Args:
            since: how many it had been sent before.
        """
        self.asked()  # what is in flight may not have been read yet
        told: list[str] = self._get(f"/asked?from={since}")
        return told

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.model_port}{path}") as reply:
            return json.load(reply)


@contextmanager
def model_server() -> Iterator[int]:
    """The tests' model server, on the port that it gives."""
    port = closed_port()
    server = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("model_server.py")), str(port)],
        env=environment(),
    )
    try:
        yield port
    finally:
        server.terminate()
        server.wait(10)
