"""What several acceptance tests share: the tests' own modules, and a stack that runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kit import hostile, started, until
from model_server import MODEL
from stacks import Stack, model_server


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
