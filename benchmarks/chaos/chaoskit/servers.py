"""Redis and the simulated endpoints of a rig, restartable, and what the endpoints have seen."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaoskit.plan import Server
from chaoskit.processes import Child
from fanout.local.probes import http_ok, redis_ok
from fanout.local.valkey import find_server

FANOUT = str(Path(sys.executable).with_name("fanout"))
#: Seconds after N was lowered until what was in flight must have ended.
_SETTLES_S = 8.0
#: An abort and the next request may meet at the server for a moment: the book counts from the
#: arrival of a head to the moment at which the close of another connection is seen.
BRIEF_S = 0.1
_START_S = 60.0


@dataclass(slots=True)
class Book:
    """What an endpoint has seen, over all its lives."""

    requests: int = 0
    answered: int = 0
    twice: int = 0
    retries: int = 0
    most: int = 0
    above: int = 0
    brief_s: float = 0.0
    unread: int = 0
    examples: list[str] = field(default_factory=list)


class Sim:
    """One simulated endpoint.

    Args:
        server: what it is.
        port: where it listens.
        folder: of the rig.
    """

    def __init__(self, server: Server, port: int, folder: Path) -> None:
        self.server = server
        self.port = port
        self.book = Book()
        command = [FANOUT, "sim", "--port", str(port), *server.options]
        self.process = Child(f"sim-{server.name}", command, folder)
        #: (from when it may hold, N), by `time.monotonic`.
        self.turns: list[tuple[float, int]] = [(0.0, server.n)]
        self._faults: dict[str, Any] = {}
        self._restarting = asyncio.Lock()

    async def start(self) -> None:
        """Start it and wait until it listens."""
        self.process.start()
        await _until(lambda: http_ok(self.port, "/health"), self.process)

    async def restart(self, number: signal.Signals, back_s: float) -> None:
        """End it, read what it saw before, and start it again after a while."""
        if self._restarting.locked() or not self.process.alive:
            return  # another fault has ended it, and will start it
        async with self._restarting:
            await self.close_book()
            await self.process.stop(number, 5.0)
            await asyncio.sleep(back_s)
            await self.start()

    async def go_wrong(self, body: dict[str, Any]) -> None:
        """`POST /faults`, unless it is away."""
        await asyncio.to_thread(self._post, body)

    def turn(self, n: int) -> None:
        """N is another from now on: a higher one at once, a lower one when requests have ended."""
        now = time.monotonic()
        self.turns.append((now if n > self.turns[-1][1] else now + _SETTLES_S, n))

    async def answered(self) -> int:
        """Requests answered so far."""
        told = await self._stats()
        return self.book.answered + (told["answered"] if told else 0)

    async def close_book(self) -> None:
        """Add up what this life has seen."""
        told = await self._stats()
        if told is None:
            self.book.unread += 1
            return
        book, duplicates = self.book, told["duplicates"]
        book.requests += told["requests"]
        book.answered += told["answered"]
        book.retries += told["retries"]
        book.twice += duplicates["while_in_flight"] + duplicates["after_answer"]
        book.examples += duplicates["examples"]
        book.most = max(book.most, told["in_flight"]["max"])
        began = time.monotonic() - told["seconds"]
        for start, end, n in self._phases(began, time.monotonic()):
            await self._check(start - began, end - began, n, whole=len(self.turns) == 1, told=told)

    def _phases(self, began: float, ended: float) -> list[tuple[float, float, int]]:
        starts = [at for at, _ in self.turns]
        # N lowered and raised before it had settled: the lower one was never in force.
        turns = [t for i, t in enumerate(self.turns) if not any(s <= t[0] for s in starts[i + 1 :])]
        ends = [at for at, _ in turns[1:]] + [ended]
        phases = [(max(at, began), end, n) for (at, n), end in zip(turns, ends, strict=True)]
        return [phase for phase in phases if phase[1] > phase[0]]

    async def _check(
        self, start: float, end: float, n: int, *, whole: bool, told: dict[str, Any]
    ) -> None:
        if whole:
            most = told["in_flight"]["max"]
            levels = told["in_flight"]["seconds_at"].items()
            above_s = sum(s for level, s in levels if int(level) > n)
        else:
            between = await self._stats(f"&from={start:.3f}&to={end:.3f}")
            most = between["between"]["max"] if between else 0
            above_s = BRIEF_S if most > n else 0.0
        if most > n and above_s >= BRIEF_S:
            self.book.above = max(self.book.above, most - n)
        self.book.brief_s = max(self.book.brief_s, above_s)

    async def _stats(self, more: str = "") -> dict[str, Any] | None:
        return await asyncio.to_thread(self._get, more)

    def _get(self, more: str) -> dict[str, Any] | None:
        # Without a curve: its 200 points are sums over all that happened.
        url = f"http://127.0.0.1:{self.port}/stats?points={'1' if more else '0'}{more}"
        try:
            with urllib.request.urlopen(url, timeout=3.0) as reply:
                told: dict[str, Any] = json.load(reply)
        except (OSError, ValueError):
            return None
        return told

    def _post(self, body: dict[str, Any]) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/faults", json.dumps(body).encode()
        )
        try:
            with urllib.request.urlopen(request, timeout=10.0):
                pass
        except urllib.error.HTTPError:
            raise
        except OSError:
            pass  # it is away: whatever it did wrong has ended with it


class Redis(Child):
    """The broker, with its append-only file.

    Args:
        port: where it listens.
        folder: of the rig.
        appendfsync: always or everysec.
    """

    def __init__(self, port: int, folder: Path, appendfsync: str) -> None:
        self.port = port
        self.data = folder / "redis"
        self.data.mkdir()
        options = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(self.data),
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        given = [part for key, value in options.items() for part in (f"--{key}", value)]
        super().__init__("redis", [str(find_server()), *given], folder)

    async def begin(self) -> None:
        """Start it and wait until it answers."""
        self.start()
        await _until(lambda: redis_ok(self.port), self)

    def forget(self) -> None:
        """Remove its data; it must not run."""
        shutil.rmtree(self.data)
        self.data.mkdir()

    @property
    def file_bytes(self) -> int:
        """How long its append-only file is."""
        return max((f.stat().st_size for f in self.data.glob("appendonlydir/*.aof")), default=0)

    def tear(self, size: int) -> None:
        """Cut so many bytes off its file, at most half of it; it must not run."""
        for file in self.data.glob("appendonlydir/*.incr.aof"):
            os.truncate(file, max(file.stat().st_size - size, file.stat().st_size // 2))


async def _until(ready: Any, process: Child) -> None:
    deadline = time.monotonic() + _START_S
    while not await asyncio.to_thread(ready):
        if not process.alive:
            raise RuntimeError(f"{process.name} ended at its start with {process.code}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{process.name} is not there after {_START_S:g} s")
        await asyncio.sleep(0.05)
