"""What several acceptance tests share: the tests' own modules, and a stack that runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kit import closed_port, environment, hostile, started, until
from model_server import MODEL


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


@pytest.fixture(scope="session")
def model_port() -> Iterator[int]:
    with model_server() as port:
        yield port


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, model_port: int) -> Iterator[Stack]:
    folder = hostile(tmp_path_factory.mktemp("up"))
    (folder / "fanout.toml").write_text(
        f'[endpoint.fake]\nurl = "http://127.0.0.1:{model_port}"\nmodel = "{MODEL}"\n'
        "concurrency = 4\n"
    )
    log = folder / "up.log"
    with started("up", "--flower-port", "0", cwd=folder, log=log) as process:
        until(lambda: "ready" in log.read_text(), "fanout up is ready", process=process, log=log)
        yield Stack(folder, model_port, log)
