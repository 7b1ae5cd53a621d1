"""Running the real command from a folder that tries to get in the way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

#: The command as it was installed beside the interpreter that runs the tests.
FANOUT = str(Path(sys.executable).with_name("fanout"))


def hostile(folder: Path) -> Path:
    """Fill `folder` with modules that must never be imported."""
    trap = "raise SystemExit('the current folder was imported')\n"
    for name in ("tasks.py", "workers.py", "celeryconfig.py", "redis.py", "flowerconfig.py"):
        (folder / name).write_text(trap)
    for package in ("fanout", "fanout_workers", "fanout_tasks", "celery"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(trap)
    return folder


def closed_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without any configuration of fanout."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FANOUT_")}
    return {**clean, "COLUMNS": "200", **(extra or {})}


def fanout(
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout_s: float = 90.0,
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [FANOUT, *arguments],
        cwd=cwd,
        env=environment(env),
        input=stdin,
        text=True,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )


@contextmanager
def started(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run one command in a session of its own for as long as the block lasts."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [FANOUT, *arguments],
            cwd=cwd,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(
    condition: Callable[[], object],
    what: str,
    *,
    process: subprocess.Popen[bytes] | None = None,
    log: Path | None = None,
    timeout_s: float = 60.0,
) -> None:
    """Return when `condition` is true; fail with the log when it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        said = log.read_text(errors="replace") if log else ""
        ended = process is not None and process.poll() is not None
        assert not ended, f"the command ended before: {what}\n{said}"
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}\n{said}"
        time.sleep(0.05)


def alive_in(folder: Path) -> list[str]:
    """Command lines of the living processes whose current folder is `folder` or inside it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            cwd = (process / "cwd").resolve(strict=True)
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (OSError, RuntimeError):
            continue
        if line and cwd.is_relative_to(folder.resolve()):
            found.append(line)
    return found
