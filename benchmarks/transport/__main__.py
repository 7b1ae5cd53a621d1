"""kombu's Redis transport against the batched one: speed, cost, and messages lost by kills.

    make bench NAME=transport ARGS="--kills 12"

Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from tests.integration.servers import binaries, running_server  # noqa: E402

TRANSPORTS = {"kombu": "redis", "batched": "fanout_workers.transport:Transport"}
SLOTS = 288
LIMIT_S = 120.0
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def message(task: str, seconds: float) -> tuple[str, str]:
    """The id and the message of one task, as Celery publishes it; about 1 KB."""
    task_id = str(uuid.uuid4())
    body = json.dumps([[seconds, "x" * 120], {}, _EMBED]).encode()
    nothing = ("shadow", "eta", "expires", "group", "group_index", "parent_id", "stamped_headers")
    headers = {
        **dict.fromkeys(nothing),
        "lang": "py",
        "task": task,
        "id": task_id,
        "root_id": task_id,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "origin": "bench",
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamps": {},
    }
    properties = {
        "correlation_id": task_id,
        "reply_to": "",
        "delivery_mode": 2,
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
        "delivery_info": {"exchange": "", "routing_key": "celery"},
    }
    return task_id, json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "headers": headers,
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "properties": properties,
        }
    )


class Bench:
    """One server, and workers over one transport."""

    def __init__(self, url: str, transport: str) -> None:
        self.redis = redis.Redis.from_url(url)
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT / "workers"), str(ROOT)]),
            "BENCH_URL": url,
            "BENCH_TRANSPORT": TRANSPORTS[transport],
        }

    def publish(self, task: str, durations: list[float]) -> set[str]:
        """Fill the queue; the ids."""
        pipe = self.redis.pipeline(transaction=False)
        ids = set()
        for seconds in durations:
            task_id, encoded = message(task, seconds)
            ids.add(task_id)
            pipe.lpush("celery", encoded)
        pipe.execute()
        return ids

    @contextmanager
    def worker(self, *options: str, visibility_s: float = 120) -> Iterator[subprocess.Popen[bytes]]:
        """A worker process; killed at the end of the block if it still runs."""
        command = [
            *(sys.executable, "-P", "-m", "celery", "-A", "project", "worker", "-l", "error"),
            *("-c", str(SLOTS), "--without-gossip", "--without-mingle", *options),
        ]
        environment = self._environment | {"BENCH_VISIBILITY": str(visibility_s)}
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, env=environment, cwd=HERE, stdout=quiet, stderr=quiet)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    @property
    def open(self) -> int:
        """Messages that are not acknowledged."""
        return int(self.redis.llen("celery") + self.redis.hlen("unacked"))

    def wait_until_done(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the last acknowledgement."""
        deadline = time.monotonic() + LIMIT_S
        while self.open:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.open} messages are left")
            time.sleep(0.02)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(kind: str, transport: str, durations: list[float], *options: str) -> dict[str, float]:
    """Tasks/s and CPU seconds per 1,000 tasks, from the first fetch to the last acknowledgement."""
    with running_server(kind, "--appendonly", "yes") as url:
        bench = Bench(url, transport)
        bench.publish("wait", durations)
        with bench.worker(*options) as process:
            while bench.redis.llen("celery") == len(durations):
                time.sleep(0.005)
            start, cpu = time.monotonic(), cpu_s(process.pid)
            bench.wait_until_done(process)
            took, cpu = time.monotonic() - start, cpu_s(process.pid) - cpu
    thousands = len(durations) / 1000
    return {"per_s": round(len(durations) / took), "cpu_s_per_1000": round(cpu / thousands, 3)}


def kill(kind: str, transport: str, kills: int, seed: int = 1) -> dict[str, int]:
    """Kill a worker under load, again and again; what was lost, and what ran twice."""
    rng = random.Random(seed)
    sent: set[str] = set()
    with running_server(kind) as url:
        bench = Bench(url, transport)
        for _ in range(kills):
            sent |= bench.publish("mark", [0.0] * 3000)
            before = bench.redis.llen("done")
            with bench.worker(visibility_s=3) as process:
                while bench.redis.llen("done") == before:
                    time.sleep(0.005)
                time.sleep(rng.uniform(0.05, 0.6))
                process.kill()
        with bench.worker(visibility_s=3) as process:
            bench.wait_until_done(process)
        runs = Counter(bench.redis.lrange("done", 0, -1))
    twice = sum(count > 1 for count in runs.values())
    return {"kills": kills, "sent": len(sent), "lost": len(sent) - len(runs), "twice": twice}


def main() -> None:
    """Run everything and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=sorted(binaries()), default=min(binaries()))
    parser.add_argument("--kills", type=int, default=6, help="kills for each transport; 0 for none")
    parser.add_argument("--tasks", type=int, default=4000)
    arguments = parser.parse_args()
    rng = random.Random(1)
    slow = [rng.lognormvariate(-0.125, 0.5) for _ in range(2500)]
    loads = {"no_op": [0.0] * arguments.tasks, "one_second": slow}
    figures: dict[str, Any] = {"server": arguments.server}
    for transport in TRANSPORTS:
        of: dict[str, Any] = {}
        figures[transport] = of
        for name, durations in loads.items():
            of[name] = measure(arguments.server, transport, durations)
            of[f"{name}_events"] = measure(arguments.server, transport, durations, "-E")
            print(f"{transport}: {name} {of[name]}, with events {of[f'{name}_events']}")
        if arguments.kills:
            of["killed"] = kill(arguments.server, transport, arguments.kills)
            print(f"{transport}: {of['killed']}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
