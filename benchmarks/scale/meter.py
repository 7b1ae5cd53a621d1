"""CPU seconds and resident memory of processes, from /proc (Linux), and what Redis holds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis

from fanout import keys

sys.path.insert(0, str(Path(__file__).parents[1]))

from procfs import cpu_s, rss_mb


@dataclass(frozen=True)
class Sample:
    """One look at a run.

    Attributes:
        at: monotonic seconds.
        done: records that have left Redis, for they are on disk.
        cpu: user and system seconds by process, its children included.
        rss: resident MB by process.
        redis_mb: what Redis has allocated.
    """

    at: float
    done: int
    cpu: dict[str, float]
    rss: dict[str, float]
    redis_mb: float


class Ledger:
    """How far the only job of a Redis is."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)
        self._job = ""

    def has_worker(self) -> bool:
        """Whether a worker has shown itself."""
        return bool(self._redis.exists(keys.WORKERS))

    def memory_mb(self, field: str = "used_memory") -> float:
        return int(self._redis.info("memory")[field]) / 2**20

    def done(self) -> int:
        """Records collected: settled, and no longer in the stream."""
        if not self._job:
            found = self._redis.zrange(keys.JOBS, 0, 0)
            if not found:
                return 0
            self._job = found[0].decode()
        with self._redis.pipeline(transaction=True) as both:
            both.hmget(keys.job(self._job), "ok", "invalid", "failed", "skipped", "cancelled")
            both.xlen(keys.records(self._job))
            counts, unread = both.execute()
        return sum(int(count or 0) for count in counts) - int(unread)

    def held(self) -> dict[str, tuple[int, int]]:
        """Entries and bytes of what is there for each item of the window, by key."""
        pipe = self._redis.pipeline(transaction=True)
        queue, records = "fanout.default", keys.records(self._job)
        for key, length in ((queue, "LLEN"), ("unacked", "HLEN"), (records, "XLEN")):
            pipe.execute_command(length, key)
            pipe.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0)
        found = pipe.execute()
        names = ("queue", "unacked", "records")
        return {
            name: (int(found[2 * n]), int(found[2 * n + 1] or 0)) for n, name in enumerate(names)
        }


def look(pids: Mapping[str, int], ledger: Ledger) -> Sample:
    """One sample now."""
    return Sample(
        at=time.monotonic(),
        done=ledger.done(),
        cpu={name: cpu_s(pid) for name, pid in pids.items()},
        rss={name: rss_mb(pid) for name, pid in pids.items()},
        redis_mb=ledger.memory_mb(),
    )


def between(samples: Sequence[Sample], first: float, last: float) -> tuple[Sample, Sample]:
    """The samples next to two numbers of records."""

    def near(done: float) -> Callable[[Sample], float]:
        return lambda sample: abs(sample.done - done)

    return min(samples, key=near(first)), min(samples, key=near(last))


def cost(first: Sample, last: Sample) -> dict[str, float]:
    """items/s, and CPU seconds per 1,000 items by process."""
    count = last.done - first.done
    if count <= 0:
        raise SystemExit("too few items for a measurement")
    costs = {
        f"{name}_cpu_s_per_1000": round(1000 * (last.cpu[name] - first.cpu[name]) / count, 4)
        for name in first.cpu
    }
    return {"items_per_s": round(count / (last.at - first.at), 1)} | costs
