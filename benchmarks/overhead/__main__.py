"""What an item costs: fanout's whole path against other queues and a bare client, in one run.

Every client has one worker process and at most 256 requests in flight at the same server, which
answers at once; some again with replies that take a second, and fanout with five times as many
items. Items are in the queue before the worker starts, and figures are taken between the 10 % and
the 90 % mark of the replies.

CPU is user and system time of the worker process and its children, from /proc; the server, Redis
and the client that submits and collects are not in it. Memory is the worker's largest resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import meter
from procfs import rss_mb
from workload import MODEL

from fanout.local.probes import free_port
from fanout.local.processes import Process, Stack
from fanout.local.valkey import ValkeyServer

HERE = Path(__file__).parent
CAP = 256
LIMIT_S = 240.0
OTHERS = Path(sys.prefix) / "baselines" / "bin" / "python"

#: How long the server takes for a reply: nothing, or a second on average (log-normal).
AT_ONCE = "0"
ONE_SECOND = "lognormal:0.8825,0.5"
#: Items in the default run: fewer for those that would take minutes.
ITEMS = {"fanout": 10_000, "bare": 30_000, "saq": 10_000, "threads": 3_000, "gevent": 1_500}
#: Clients that are measured in every round, one after the other, for machines are never quiet.
REPEATED = ("fanout", "saq")
#: Clients that are measured with one-second replies too, and their items.
SLOW = ("fanout", "saq", "threads")
SLOW_ITEMS = 5_000
#: Items of the run that tells whether an item costs the same in a long one.
LONG_ITEMS = 50_000


@dataclass(frozen=True)
class Place:
    """Where one measurement happens."""

    stack: Stack
    folder: Path
    redis: str
    url: str
    items: int

    def start(self, name: str, *argv: str | Path, env: dict[str, str] | None = None) -> Process:
        return self.stack.start(
            Process(name, argv, log=self.folder / f"{name}.log", env=env, cwd=self.folder)
        )

    def ask(self, *argv: str | Path, env: dict[str, str] | None = None) -> float:
        """The number that a script prints."""
        done = subprocess.run(
            [str(part) for part in argv],
            env={**os.environ, **(env or {})},
            check=False,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(done.args)} failed:\n{done.stderr}")
        return float(done.stdout.split()[-1])


class Client:
    """One way to get the items done; a subclass each."""

    def enqueue(self, place: Place) -> float | None:
        """Queue the items; returns items/s."""

    def worker(self, place: Place) -> Process:
        """Start the worker."""
        raise NotImplementedError

    def results(self, place: Place) -> int:
        """How many items have their result."""
        return place.items

    def collector(self) -> int | None:
        """The process that collects meanwhile, if there is one."""


class Fanout(Client):
    """All of it: Celery, Redis, pool, permits, validation, record, events; the client collects."""

    def enqueue(self, place: Place) -> float:
        argv = [sys.executable, HERE / "submit.py", place.redis, str(place.items)]
        self._client = place.start("client", *argv, env=_settings(place))
        self._log = place.folder / "client.log"
        return place.items / self._line(0)["seconds"]

    def worker(self, place: Place) -> Process:
        argv = [sys.executable, "-P", "-m", "fanout_workers", "--redis", place.redis]
        return place.start("worker", *argv, env=_settings(place))

    def results(self, place: Place) -> int:
        return int(self._line(1)["statuses"].get("ok", 0))

    def collector(self) -> int | None:
        return self._client.pid

    def _line(self, number: int) -> dict[str, Any]:
        deadline = time.monotonic() + LIMIT_S
        while len(lines := self._log.read_text().splitlines()) <= number:
            if time.monotonic() > deadline or not self._client.alive:
                raise SystemExit(f"the client ended early: {self._log.read_text()}")
            time.sleep(0.05)
        found: dict[str, Any] = json.loads(lines[number])
        return found


class Bare(Client):
    """aiohttp on uvloop without a queue: what HTTP and JSON alone cost."""

    def worker(self, place: Place) -> Process:
        return place.start(
            "worker", OTHERS, HERE / "bare.py", place.url, str(CAP), str(place.items)
        )


class Saq(Client):
    """saq on uvloop with aiohttp; results in Redis."""

    def enqueue(self, place: Place) -> float:
        seconds = place.ask(OTHERS, HERE / "saq_queue.py", "enqueue", place.redis, str(place.items))
        return place.items / seconds

    def worker(self, place: Place) -> Process:
        argv = ["worker", place.redis, place.url, str(CAP)]
        return place.start("worker", OTHERS, HERE / "saq_queue.py", *argv)

    def results(self, place: Place) -> int:
        return int(place.ask(OTHERS, HERE / "saq_queue.py", "results", place.redis))


class StockCelery(Client):
    """A stock Celery worker; results in Redis."""

    def __init__(self, pool: str, http: str) -> None:
        self._pool = pool
        self._http = http

    def _env(self, place: Place) -> dict[str, str]:
        return {
            "OVERHEAD_REDIS": place.redis,
            "OVERHEAD_URL": place.url,
            "OVERHEAD_HTTP": self._http,
            "PYTHONPATH": str(HERE),
        }

    def enqueue(self, place: Place) -> float:
        argv = [OTHERS, HERE / "celery_app.py", "enqueue", str(place.items)]
        return place.items / place.ask(*argv, env=self._env(place))

    def worker(self, place: Place) -> Process:
        argv = ["-A", "celery_app", "worker", "-P", self._pool, "-c", str(CAP), "-l", "warning"]
        return place.start("worker", OTHERS, "-m", "celery", *argv, env=self._env(place))

    def results(self, place: Place) -> int:
        return int(place.ask(OTHERS, HERE / "celery_app.py", "results", env=self._env(place)))


def client_of(name: str) -> Client:
    match name:
        case "fanout":
            return Fanout()
        case "bare":
            return Bare()
        case "saq":
            return Saq()
        case "threads":
            return StockCelery("threads", "urllib3")
        case _:
            return StockCelery("gevent", "requests")


def _settings(place: Place) -> dict[str, str]:
    return {
        "FANOUT_ENDPOINT__BENCH__URL": place.url,
        "FANOUT_ENDPOINT__BENCH__MODEL": MODEL,
        "FANOUT_ENDPOINT__BENCH__CONCURRENCY": str(CAP),
    }


@contextmanager
def place_for(items: int, seconds: str) -> Iterator[Place]:
    """A fresh Redis and a fresh server."""
    with tempfile.TemporaryDirectory() as folder, Stack() as stack:
        valkey = ValkeyServer(log=Path(folder) / "valkey.log")
        valkey.start_in(stack)
        port = free_port()
        url = f"http://127.0.0.1:{port}/v1"
        place = Place(stack, Path(folder), valkey.url, url, items)
        argv = [sys.executable, "-P", "-m", "fanout", "sim", "--port", str(port)]
        argv += ["--output-lengths", "40", "--seconds", seconds]
        server = Process("server", argv, log=Path(folder) / "server.log")
        stack.start(server, ready=lambda: _answers(url))
        yield place


def _answers(url: str) -> bool:
    try:
        _stats(url)
    except OSError:
        return False
    return True


def _stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats?points=1", timeout=10) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def measure(name: str, items: int, seconds: str) -> dict[str, float]:
    """The figures of one client."""
    client = client_of(name)
    with place_for(items, seconds) as place:
        enqueued = client.enqueue(place)
        worker = client.worker(place)
        pids = {"worker": worker.pid or 0}
        if collector := client.collector():
            pids["collector"] = collector
        samples = meter.watch(pids, lambda: _stats(place.url), items, lambda: worker.alive, LIMIT_S)
        first, last = meter.between(samples, items)
        count, seconds = last.answered - first.answered, last.at - first.at
        figures = {
            "items_per_s": round(count / seconds, 1),
            "cpu_s_per_1000": round(1000 * (last.cpu["worker"] - first.cpu["worker"]) / count, 3),
            "mean_in_flight": round((last.in_flight_s - first.in_flight_s) / seconds, 1),
            "max_in_flight": _stats(place.url)["in_flight"]["max"],
            "peak_rss_mb": round(rss_mb(pids["worker"], "VmHWM"), 1),
        }
        if enqueued:
            figures["enqueue_per_s"] = round(enqueued, 1)
        if collector:
            spent = last.cpu["collector"] - first.cpu["collector"]
            figures["collector_cpu_s_per_1000"] = round(1000 * spent / count, 3)
        figures["results"] = _settled(client, place)
        return figures


def _settled(client: Client, place: Place) -> int:
    """Results at the end; waits for what is still being written."""
    deadline = time.monotonic() + 15.0
    while (found := client.results(place)) < place.items and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def rounds(names: list[str], items: int | None, count: int) -> dict[str, dict[str, float]]:
    """Figures at full speed; of what is repeated, the median of each."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(count):
        for name in names:
            if number == 0 or name in REPEATED:
                figures = measure(name, items or ITEMS[name], AT_ONCE)
                found[name].append(_shown(name, figures))
    return {
        name: {key: statistics.median(one[key] for one in each) for key in each[0]}
        for name, each in found.items()
    }


def ratios(figures: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """items/s of each client to the best of all and to saq, and CPU to saq's."""
    rates = {name: each["items_per_s"] for name, each in figures.items()}
    costs = {name: each["cpu_s_per_1000"] for name, each in figures.items()}
    best = max(rates.values())
    found = {"to_best": {name: round(rate / best, 3) for name, rate in rates.items()}}
    if "saq" in figures:
        found["to_saq"] = {name: round(rate / rates["saq"], 3) for name, rate in rates.items()}
        found["cpu_to_saq"] = {name: round(cost / costs["saq"], 3) for name, cost in costs.items()}
    return found


def main() -> None:
    options = _parser().parse_args()
    result: dict[str, Any] = {"cap": CAP}
    if "full" in options.modes:
        result["full_speed"] = rounds(options.clients, options.items, options.rounds)
        result["ratios"] = ratios(result["full_speed"])
    if "slow" in options.modes:
        result["one_second"] = {
            name: _shown(f"{name}, 1 s", measure(name, SLOW_ITEMS, ONE_SECOND))
            for name in options.clients
            if name in SLOW
        }
    if "long" in options.modes:
        result["long"] = _shown("fanout, long", measure("fanout", LONG_ITEMS, AT_ONCE))
        if "fanout" in result.get("full_speed", {}):
            short = result["full_speed"]["fanout"]["cpu_s_per_1000"]
            result["long"]["cpu_to_short"] = round(result["long"]["cpu_s_per_1000"] / short, 3)
    print(json.dumps(result))


def _shown(name: str, figures: dict[str, float]) -> dict[str, float]:
    told = "  ".join(f"{key} {value:g}" for key, value in figures.items())
    print(f"{name:14} {told}", file=sys.stderr, flush=True)
    return figures


def _parser() -> argparse.ArgumentParser:
    modes = ["full", "slow", "long"]
    parser = argparse.ArgumentParser(prog="make bench NAME=overhead ARGS=…")
    parser.add_argument("--clients", nargs="+", default=list(ITEMS), choices=list(ITEMS))
    parser.add_argument("--items", type=int, help="for every client at full speed")
    parser.add_argument("--rounds", type=int, default=3, help="of fanout and saq at full speed")
    parser.add_argument("--modes", nargs="+", default=modes, choices=modes)
    return parser


if __name__ == "__main__":
    main()
