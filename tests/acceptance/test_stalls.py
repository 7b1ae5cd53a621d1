"""A run that stalls says so, with its cause; and a client outlives its Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit import FANOUT, environment, fanout, hostile, started, until
from model_server import MODEL
from stacks import model_server

SCHEMA = {"title": "T", "type": "object", "properties": {"word": {"type": "string"}}}
#: Seconds of silence that are nothing special, here.
LEAST = {"FANOUT_STALL_AFTER_S": "2"}
#: The same where a run ends at the first stall: a busy machine must not look like one.
PATIENT = {"FANOUT_STALL_AFTER_S": "5"}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """(folder, port of the model server) of a running `fanout up`."""
    here = hostile(tmp_path_factory.mktemp("stalls"))
    (here / "schema.json").write_text(json.dumps(SCHEMA))
    log = here / "up.log"
    with model_server() as port:
        (here / "fanout.toml").write_text(
            f'[endpoint.fake]\nurl = "http://127.0.0.1:{port}"\nmodel = "{MODEL}"\n'
            "concurrency = 4\n"
        )
        with started("up", "--no-flower", cwd=here, log=log) as process:
            until(lambda: "ready;" in log.read_text(), "up is ready", process=process, log=log)
            yield here, port


@contextmanager
def extracting(
    here: Path, texts: list[str], *options: str, env: Mapping[str, str] = LEAST
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A running `fanout extract` of these texts, and the file of what it says."""
    (here / "docs.jsonl").write_text(
        "\n".join(json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts))
    )
    (here / "out.jsonl").unlink(missing_ok=True)
    log = here / "extract.log"
    with started(
        *("extract", "docs.jsonl", "--schema", "schema.json", "-o", "out.jsonl", *options),
        cwd=here, env=env, log=log,
    ) as process:  # fmt: skip
        yield process, log


def ids(here: Path) -> list[int]:
    lines = (here / "out.jsonl").read_text().splitlines()
    return sorted(int(json.loads(line)["id"]) for line in lines)


def pids(here: Path, name: str) -> list[int]:
    """The processes whose command line has `name` and whose folder is `here` or inside it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            cwd = (process / "cwd").resolve(strict=True)
            line = (process / "cmdline").read_bytes().decode(errors="replace")
        except (OSError, RuntimeError):
            continue
        if name in line and cwd.is_relative_to(here.resolve()):
            found.append(int(process.name))
    return found


def test_a_worker_that_is_stopped_is_named_and_a_command_is_run(up: tuple[Path, int]) -> None:
    here, _ = up
    command = "sh -c 'echo \"$FANOUT_CAUSE, $FANOUT_OPEN open\" >> told'"
    stopped = pids(here, "fanout_workers")
    try:
        with extracting(here, ["SLOW"] * 300, "--on-stall", command) as (process, log):
            until(lambda: (here / "out.jsonl").exists() and ids(here), "records", process=process)
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            until(
                lambda: "nothing has been heard of worker" in log.read_text(),
                "the worker is named", process=process, log=log,
            )  # fmt: skip
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            assert process.wait(60) == 0, log.read_text()
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    said = log.read_text()
    assert "no record for 0:0" in said
    assert "records come again, after" in said
    assert (here / "told").read_text().endswith(" open\n")
    assert ids(here) == list(range(300))


def test_a_server_that_hangs_ends_a_run_that_shall_not_wait(up: tuple[Path, int]) -> None:
    here, port = up
    texts = ["a"] * 5 + ["HANGS"]
    with extracting(here, texts, "-q", "--on-stall", "exit", env=PATIENT) as (process, log):
        assert process.wait(60) == 3, log.read_text()
    said = log.read_text()
    assert "with 1 item open" in said
    assert "1 requests are in flight at fake, and none has ended" in said
    assert ids(here) == list(range(5))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/release"):
        pass


def test_an_output_that_nobody_takes_ends_a_run_that_shall_not_wait(up: tuple[Path, int]) -> None:
    here, _ = up
    (here / "docs.jsonl").write_text(
        "\n".join(json.dumps({"id": str(n), "text": "x" * 500}) for n in range(1500))
    )
    with (here / "blocked.log").open("wb") as log:
        process = subprocess.Popen(
            [FANOUT, "extract", "docs.jsonl", "--schema", "schema.json", "-o", "-",
             "--on-stall", "exit"],
            cwd=here, env=environment(PATIENT), stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        try:
            assert process.wait(60) == 3
        finally:
            process.kill()
            process.communicate()
    assert "the output has not taken the last" in (here / "blocked.log").read_text()


def test_a_run_outlives_its_redis(up: tuple[Path, int]) -> None:
    here, _ = up
    (server,) = [
        pid
        for pid in pids(here, "valkey-server")  # its guard has the name in its arguments
        if Path(f"/proc/{pid}/comm").read_text().startswith("valkey-server")
    ]
    try:
        with extracting(here, ["SLOW"] * 400) as (process, log):
            until(lambda: (here / "out.jsonl").exists() and ids(here), "records", process=process)
            os.kill(server, signal.SIGSTOP)
            until(
                lambda: "waiting for Redis since" in log.read_text(), "it says so",
                process=process, log=log,
            )  # fmt: skip
            os.kill(server, signal.SIGCONT)
            assert process.wait(60) == 0, log.read_text()
    finally:
        os.kill(server, signal.SIGCONT)
    assert "Redis answers again, after" in log.read_text()
    assert ids(here) == list(range(400))


def test_a_command_that_cannot_be_run_is_refused(up: tuple[Path, int]) -> None:
    here, _ = up
    done = fanout(
        *("extract", "docs.jsonl", "--schema", "schema.json", "-o", "x.jsonl"),
        *("--on-stall", "no-such-program"), cwd=here,
    )  # fmt: skip
    assert done.returncode == 2
    assert "there is no such program" in done.stderr
