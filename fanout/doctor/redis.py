"""Redis or Valkey as the place where jobs are kept, and the workers that it knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from fanout import keys
from fanout.doctor.finding import Finding, Level, words
from fanout.errors import Unavailable
from fanout.settings import Settings
from fanout.store import RedisStore, WorkerInfo

_ANSWER_S = 10.0
_LEAST_REDIS = 7
#: Used memory over the limit from which a person should know.
_NEARLY_FULL = 0.8


async def check_redis(settings: Settings) -> list[Finding]:
    """Whether Redis answers, keeps a job safe, and knows workers for every tier."""
    client = redis.asyncio.Redis.from_url(
        settings.redis_url,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=_ANSWER_S,
        socket_timeout=_ANSWER_S,
    )
    try:
        info = await client.info()
        reachable = Finding("redis", "reachable", "ok", settings.redis_name)
        workers = await _check_workers(settings, RedisStore(client, settings.redis_name))
        dead = dead_letters(int(await client.xlen(keys.DEAD_LETTERS)))
        return [reachable, *redis_findings(info), *dead, *workers]
    except (RedisError, OSError) as error:
        text = f"{settings.redis_name}: {words(error)}"
        return [Finding("redis", "reachable", "fail", text)]
    except Unavailable as error:
        return [Finding("redis", "reachable", "fail", str(error))]
    finally:
        await client.aclose()


def dead_letters(count: int) -> list[Finding]:
    """What there is to say of that many messages that were none; nothing of none."""
    if not count:
        return []
    text = (
        f"{count:,} messages in the queues were no items: somebody else writes there. Look with "
        f"`XRANGE {keys.DEAD_LETTERS} - +`, then `DEL {keys.DEAD_LETTERS}`"
    )
    return [Finding("redis", "dead letters", "warn", text)]


def redis_findings(info: Mapping[str, Any]) -> list[Finding]:
    """What the server's INFO says about keeping a job safe.

    Args:
        info: the fields of INFO by name, as redis-py parses them.
    """
    findings = [_server(info), _persistence(info), _eviction(info), _memory(info)]
    if info.get("cluster_enabled"):
        text = "Redis Cluster: Celery's queues need a single server or Sentinel"
        findings.append(Finding("redis", "topology", "fail", text))
    if info.get("role", "master") != "master":
        text = f"this server is a {info['role']}: nothing can be written to it"
        findings.append(Finding("redis", "topology", "fail", text))
    return findings


def _server(info: Mapping[str, Any]) -> Finding:
    if "valkey_version" in info:
        return Finding("redis", "server", "ok", f"Valkey {info['valkey_version']}")
    version = str(info.get("redis_version", "of unknown version"))
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) >= _LEAST_REDIS:
        return Finding("redis", "server", "ok", f"Redis {version}")
    text = f"Redis {version}: version {_LEAST_REDIS} or later is needed, or Valkey"
    return Finding("redis", "server", "fail", text)


def _persistence(info: Mapping[str, Any]) -> Finding:
    if not info.get("aof_enabled"):
        text = (
            "append-only is off: a restart loses the queues, the ledgers and every record that no "
            "client has written yet, back to the last snapshot if there is one"
        )
        return Finding("redis", "persistence", "warn", text)
    if info.get("aof_last_write_status", "ok") != "ok":
        text = "append-only is on, but the last write to its file failed: is the disk full?"
        return Finding("redis", "persistence", "fail", text)
    return Finding("redis", "persistence", "ok", "append-only is on")


def _eviction(info: Mapping[str, Any]) -> Finding:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return Finding("redis", "eviction", "ok", "noeviction")
    if policy.startswith("volatile-"):
        losing = "Celery's results and the workers' reports can vanish"
    else:
        losing = "queued items, ledgers and records can vanish"
    level: Level = "fail" if policy.startswith("allkeys-") and info.get("maxmemory") else "warn"
    text = f"maxmemory-policy is {policy}: when memory is full, {losing}; set noeviction"
    return Finding("redis", "eviction", level, text)


def _memory(info: Mapping[str, Any]) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        return Finding("redis", "memory", "ok", f"{used / 2**20:,.0f} MiB used, no maxmemory")
    text = f"{used / 2**20:,.0f} of {limit / 2**20:,.0f} MiB used"
    if used > _NEARLY_FULL * limit:
        return Finding("redis", "memory", "warn", f"{text}: writes are refused when it is full")
    return Finding("redis", "memory", "ok", text)


async def _check_workers(settings: Settings, store: RedisStore) -> list[Finding]:
    findings: list[Finding] = []
    for tier in settings.tiers():
        workers = await store.workers(tier)
        findings.append(_tier(tier, workers, await store.queued(tier)))
        # What the workers see: they may sit where the endpoint cannot be reached, and we can.
        findings += [
            Finding(f"endpoint {name}", f"seen by {worker.name}", "warn", problem)
            for worker in workers
            for name, problem in worker.problems.items()
        ]
    return findings


def _tier(tier: str, workers: Iterable[WorkerInfo], queued: int) -> Finding:
    names = [worker.name for worker in workers]
    waiting = f"{queued:,} queued"
    if not names:
        text = f"no worker serves it ({waiting}): start one with `fanout worker --tier {tier}`"
        return Finding(f"tier {tier}", "workers", "warn", text)
    return Finding(f"tier {tier}", "workers", "ok", f"{', '.join(names)} ({waiting})")
