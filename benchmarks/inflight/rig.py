"""Servers, Redis and workers of one scenario, and a job that runs through them."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis

from fanout import Settings, connect, keys, load_settings
from fanout.local.probes import free_port
from fanout.local.processes import Process, Stack
from fanout.local.valkey import ValkeyServer
from fanout_workers.leases import TTL_S

SCHEMA = {"title": "Word", "type": "object", "properties": {"word": {"type": "string"}}}
#: Spread of the logarithm of the requests' times.
SIGMA = 0.5


def lognormal(mean_s: float) -> str:
    """The simulator's name of such times; it wants the median."""
    return f"lognormal:{mean_s * math.exp(-(SIGMA**2) / 2):.4f},{SIGMA}"


@dataclass
class Server:
    """One simulated endpoint: its name, N, tier and mean time of a request in seconds."""

    name: str
    n: int
    tier: str = "default"
    mean_s: float = 1.0
    port: int = field(default_factory=free_port)
    process: Process | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def stats(self, **query: float) -> dict[str, Any]:
        """What it saw."""
        asked = "&".join(f"{name.rstrip('_')}={value}" for name, value in query.items())
        with urllib.request.urlopen(f"{self.url}/stats?points=1&{asked}") as reply:
            told: dict[str, Any] = json.load(reply)
        return told

    @property
    def now(self) -> float:
        """Its time in seconds since its start."""
        return float(self.stats()["seconds"])

    @property
    def in_flight(self) -> int:
        """Requests in flight there now."""
        return int(self.stats()["in_flight"]["now"])

    def mean(self, start: float, end: float) -> float:
        """Mean in flight over N between two of its times."""
        return float(self.stats(from_=start, to=end)["between"]["mean"]) / self.n

    def curve(self, start: float, end: float, every_s: float = 0.5) -> list[tuple[float, float]]:
        """(end, mean in flight) of equal intervals."""
        points = max(1, round((end - start) / every_s))
        with urllib.request.urlopen(
            f"{self.url}/stats?from={start}&to={end}&points={points}"
        ) as reply:
            told = json.load(reply)["between"]["curve"]
        return [(at, mean) for at, mean, _ in told]


class Rig:
    """All processes of one scenario; made by `rig`."""

    def __init__(self, place: Path, base: Stack, stack: Stack, servers: list[Server]) -> None:
        self.place = place
        self.servers = servers
        self.workers: list[Process] = []
        #: Redis is stopped after the workers, also if it was restarted after they were started.
        self._base = base
        self._stack = stack
        self._made = 0
        self._valkey: ValkeyServer | None = None
        self._redis_port = free_port()
        self.settings: Settings

    @property
    def server(self) -> Server:
        """The only server."""
        (server,) = self.servers
        return server

    @property
    def redis_url(self) -> str:
        """Where Redis listens."""
        return f"redis://127.0.0.1:{self._redis_port}/0"

    def start(self, workers: Mapping[str, int]) -> None:
        """Start Redis, the servers, and so many workers of each tier."""
        self.start_redis()
        lines = [f'redis = "{self.redis_url}"']
        for server in self.servers:
            self.start_server(server)
            lines += [
                f"[endpoint.{server.name}]",
                f'url = "{server.url}"',
                f"concurrency = {server.n}",
            ]
            lines += [f'tier = "{server.tier}"']
        (self.place / "fanout.toml").write_text("\n".join(lines))
        os.environ["FANOUT_CONFIG"] = str(self.place / "fanout.toml")
        self.settings = load_settings()
        for tier, count in workers.items():
            for _ in range(count):
                self.start_worker(tier)

    def start_redis(self) -> None:
        """Start Redis, with the data that it had before."""
        self._valkey = ValkeyServer(self.place / "valkey", port=self._redis_port)
        self._valkey.start_in(self._base)

    def kill_redis(self) -> None:
        """SIGKILL to Redis."""
        assert self._valkey is not None
        assert self._valkey.process.pid is not None
        os.kill(self._valkey.process.pid, signal.SIGKILL)
        self._valkey.process.stop()

    def cut_connections(self) -> None:
        """CLIENT KILL of every connection to Redis."""
        client = redis.Redis.from_url(self.redis_url)
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        client.close()

    def start_server(self, server: Server) -> None:
        """Start a simulated server, on its port."""
        ready = self.place / f"{server.name}.ready"
        ready.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-P",
            "-m",
            "fanout",
            "sim",
            "--seconds",
            lognormal(server.mean_s),
        ]
        command += ["--port", str(server.port), "--ready-file", str(ready)]
        server.process = Process(server.name, command, log=self.place / f"{server.name}.log")
        self._stack.start(server.process, ready=ready.exists)

    def start_worker(self, tier: str = "default", wait: bool = True) -> Process:
        """Start one more worker."""
        self._made += 1
        name = f"w{self._made}@bench"
        command = [sys.executable, "-P", "-m", "fanout_workers", "--tier", tier, "--name", name]
        command += ["--loglevel", "warning"]
        worker = Process(name, command, log=self.place / f"{name}.log")
        client = redis.Redis.from_url(self.redis_url)
        shown = (lambda: bool(client.exists(keys.worker(name)))) if wait else None
        self._stack.start(worker, ready=shown, deadline_s=60.0)
        client.close()
        self.workers.append(worker)
        return worker

    def signal(self, worker: Process, number: signal.Signals) -> None:
        """Send a signal to a worker's process."""
        assert worker.pid is not None
        os.kill(worker.pid, number)

    def keep_logs(self) -> None:
        """Copy the logs to the folder named by INFLIGHT_LOGS, if any."""
        if folder := os.environ.get("INFLIGHT_LOGS"):
            shutil.copytree(
                self.place, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("valkey")
            )

    async def run(self, items: int, tier: str = "default", events: Events | None = None) -> Outcome:
        """Run a job of so many items through the workers of a tier, with events on its way."""
        outcome = Outcome(items)
        docs = ({"id": str(n), "text": f"document {n} " + "x" * 500} for n in range(items))
        async with connect(settings=self.settings) as fo:
            job = await fo.submit(
                "extract", docs, tier=tier, schema=SCHEMA, window=max(2048, 6 * 256)
            )
            waiting = list(events or ())
            async for batch in job.batches():
                for record in batch:
                    outcome.statuses[record.status] = outcome.statuses.get(record.status, 0) + 1
                    outcome.ids.append(record.id)
                while waiting and len(outcome.ids) >= waiting[0][0] * items:
                    outcome.running.append(asyncio.create_task(_call(waiting.pop(0)[1])))
            await asyncio.gather(*outcome.running)
        return outcome


#: What happens when a share of the records has come: (share, what), in their order.
Events = list[tuple[float, Callable[[], Any]]]


async def _call(what: Callable[[], Any]) -> None:
    await asyncio.to_thread(what)


@dataclass
class Outcome:
    """What became of a job's items."""

    items: int
    ids: list[str] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    running: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Items without a record."""
        return self.items - len(set(self.ids))

    @property
    def twice(self) -> int:
        """Records beyond one an item."""
        return len(self.ids) - len(set(self.ids))


def figures(rig: Rig, *outcomes: Outcome, **more: Any) -> dict[str, Any]:
    """What the servers saw and what the client got, as a scenario's line."""
    seen = [server.stats() for server in rig.servers]
    flights = [one["in_flight"] for one in seen]
    ns = [server.n for server in rig.servers]
    means = [f["mean_10_90"] / n for f, n in zip(flights, ns, strict=True) if f["mean_10_90"]]
    return {
        "mean_over_n": round(min(means), 4),
        "max_over_n": round(max(f["max"] / n for f, n in zip(flights, ns, strict=True)), 4),
        "lost": sum(outcome.lost for outcome in outcomes),
        "records_twice": sum(outcome.twice for outcome in outcomes),
        "not_ok": sum(o.items - o.lost - o.statuses.get("ok", 0) for o in outcomes),
        "duplicates": sum(
            one["duplicates"]["while_in_flight"] + one["duplicates"]["after_answer"] for one in seen
        ),
        "aborted": sum(one["aborted"] for one in seen),
        "seconds": round(max(one["seconds"] for one in seen), 1),
        **more,
    }


@contextmanager
def rig(servers: list[Server], workers: Mapping[str, int]) -> Iterator[Rig]:
    """A running rig, in a folder of its own."""
    with TemporaryDirectory(prefix="fanout-inflight-") as place, Stack() as base, Stack() as stack:
        made = Rig(Path(place), base, stack, servers)
        made.start(workers)
        yield made
        made.keep_logs()


def wait(seconds: float) -> None:
    """Let a scenario go on for a while."""
    time.sleep(seconds)


__all__ = ["TTL_S", "Events", "Outcome", "Rig", "Server", "figures", "rig", "wait"]
