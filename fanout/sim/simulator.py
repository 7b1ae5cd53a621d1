"""The simulator inside a test, and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import orjson

from fanout.errors import Unavailable
from fanout.sim.curves import Profile, load_profile
from fanout.sim.faults import Faults
from fanout.sim.lengths import parse_distribution
from fanout.sim.options import Options
from fanout.sim.server import Server
from fanout.sim.stats import Stats

_START_S = 20.0


class Simulator:
    """A simulated model server on the running event loop.

        async with Simulator("dense", speed=60) as sim:
            ...  # send requests to sim.url
            assert sim.stats.level.max == 256

    Args:
        model: a profile, or the name, alias or file of one.
        seconds: in place of a curve, the distribution of each request's time ("lognormal:1,0.5").
        output_lengths: distribution of output tokens; None: what max_tokens allows.
        faults: rates and outages.
        port: 0 is a free one.
        more: further fields of `fanout.sim.options.Options`.
    """

    def __init__(
        self,
        model: Profile | str = "moe",
        *,
        seconds: str | None = None,
        output_lengths: str | None = None,
        faults: Faults | None = None,
        port: int = 0,
        **more: Any,
    ) -> None:
        self._port = port
        self._options = Options(
            profile=load_profile(model) if isinstance(model, str) else model,
            seconds=None if seconds is None else parse_distribution(seconds),
            lengths=None if output_lengths is None else parse_distribution(output_lengths),
            faults=faults or Faults(),
            **more,
        )
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        """The server itself.

        Raises:
            RuntimeError: it has not been started.
        """
        if self._server is None:
            raise RuntimeError("the simulator has not been started")
        return self._server

    @property
    def url(self) -> str:
        """Where it listens, without /v1."""
        return self.server.url

    @property
    def stats(self) -> Stats:
        """What it saw."""
        return self.server.stats

    def reset(self) -> None:
        """Let it count anew."""
        self.stats.reset(time.monotonic())

    def mark(self, name: str) -> None:
        """Let it note the time under a name, in seconds since the reset."""
        self.stats.mark(name, time.monotonic())

    def snapshot(self, points: int = 200) -> dict[str, Any]:
        """The same as `/stats`."""
        return self.server.snapshot(points)

    async def __aenter__(self) -> Self:
        self._server = Server(self._options)
        await self._server.start(port=self._port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.server.stop()


@dataclass(frozen=True, slots=True)
class SimulatorProcess:
    """A simulator that runs as a process of its own.

    Attributes:
        url: where it listens, without /v1.
        pid: of the process.
    """

    url: str
    pid: int

    def stats(self, **query: float) -> dict[str, Any]:
        """What it saw: the JSON of `/stats`; `from_`, `to` and `points` as there."""
        asked = urlencode({name.rstrip("_"): value for name, value in query.items()})
        with urllib.request.urlopen(f"{self.url}/stats?{asked}") as reply:  # noqa: S310 - http
            told: dict[str, Any] = orjson.loads(reply.read())
        return told

    def reset(self) -> None:
        """Let it count anew."""
        self._post("/stats/reset")

    def mark(self, name: str) -> None:
        """Let it note the time under a name."""
        self._post(f"/stats/mark?{urlencode({'name': name})}")

    def _post(self, path: str) -> None:
        with urllib.request.urlopen(f"{self.url}{path}", data=b""):  # noqa: S310 - http
            pass


@contextmanager
def simulator_process(*arguments: str, cpu: int | None = None) -> Iterator[SimulatorProcess]:
    """Run `fanout sim` on a free port for as long as the block lasts.

    Args:
        arguments: of the command, `--port` and `--ready-file` excepted.
        cpu: the one processor that it may use (Linux); None: any.

    Raises:
        Unavailable: it ends at once, or does not listen in 20 seconds; with its words.
    """
    with TemporaryDirectory() as place:
        ready, log = Path(place) / "ready", Path(place) / "log"
        command = [sys.executable, "-P", "-m", "fanout", "sim", *arguments]
        command += ["--port", "0", "--ready-file", str(ready)]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)  # noqa: S603
        if cpu is not None and sys.platform == "linux":
            os.sched_setaffinity(process.pid, {cpu})
        try:
            yield SimulatorProcess(_url(process, ready, log, command), process.pid)
        finally:
            process.terminate()
            process.wait(10)


def _url(process: subprocess.Popen[bytes], ready: Path, log: Path, command: Sequence[str]) -> str:
    deadline = time.monotonic() + _START_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip()
            raise Unavailable(f"{' '.join(command[3:])} does not start: {said}")
        time.sleep(0.02)
    return ready.read_text().strip()
