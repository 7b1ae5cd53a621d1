"""A stack that runs, and the model server it asks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kit import closed_port, environment


@dataclass(frozen=True)
class Stack:
    """A running `fanout up` against the test's model server, and the folder it runs in."""

    folder: Path
    model_port: int
    log: Path


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
