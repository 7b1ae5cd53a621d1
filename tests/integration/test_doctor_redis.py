"""The doctor at a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
import redis

from fanout import Endpoint, Settings
from fanout.doctor import Finding, check, worst
from fanout.local.probes import free_port
from fanout.local.processes import Stack
from fanout.local.valkey import ValkeyServer
from fanout.store import RedisStore, WorkerInfo


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with Stack() as stack:
        server = ValkeyServer()
        server.start_in(stack)
        yield server.url


def look(url: str) -> dict[tuple[str, str], Finding]:
    endpoint = Endpoint(url="http://spark:8000", name="spark", tier="heavy")
    settings = Settings(redis=url, endpoint={"spark": endpoint})
    ill = httpx.MockTransport(lambda _: httpx.Response(503))
    found = asyncio.run(check(settings, transport=ill))
    return {(finding.subject, finding.check): finding for finding in found}


def test_a_real_server_tells_what_the_doctor_asks(valkey: str) -> None:
    found = look(valkey)
    assert found["redis", "reachable"].level == "ok"
    assert found["redis", "server"].level == "ok"
    assert "append-only is off" in found["redis", "persistence"].text
    assert found["redis", "eviction"].text == "noeviction"
    assert "MiB used" in found["redis", "memory"].text
    assert found["endpoint spark", "health"].level == "fail"
    assert worst(found.values()) == "fail"


def test_a_tier_without_workers_is_said_and_one_with_is_named(valkey: str) -> None:
    assert "fanout worker --tier heavy" in look(valkey)["tier heavy", "workers"].text

    async def report() -> None:
        store = RedisStore.from_url(valkey)
        await store.report_worker(WorkerInfo("w1@spark", "heavy"), ttl_s=60)
        await store.aclose()

    asyncio.run(report())
    finding = look(valkey)["tier heavy", "workers"]
    assert (finding.level, finding.text) == ("ok", "w1@spark (0 queued)")


def test_an_absent_redis_is_one_finding_without_its_password() -> None:
    found = look(f"redis://:hunter2@127.0.0.1:{free_port()}/0")
    redis = [finding for (subject, _), finding in found.items() if subject == "redis"]
    assert [(finding.check, finding.level) for finding in redis] == [("reachable", "fail")]
    assert "hunter2" not in redis[0].text
    assert not any(subject.startswith("tier") for subject, _ in found)


def test_no_endpoint_at_all_fails(valkey: str) -> None:
    found = asyncio.run(check(Settings(redis=valkey, endpoint={})))
    assert worst(found) == "fail"
    assert found[-1].text == "no endpoint is configured"


def test_a_policy_that_deletes_work_is_seen_where_redis_tells_it() -> None:
    async def asked(url: str) -> str:
        store = RedisStore.from_url(url)
        try:
            return await store.eviction()
        finally:
            await store.aclose()

    with Stack() as stack:
        server = ValkeyServer()
        server.start_in(stack)
        client = redis.Redis.from_url(server.url)
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert asyncio.run(asked(server.url)) == ""  # without a limit it is never full
        client.config_set("maxmemory", "100mb")
        assert asyncio.run(asked(server.url)) == "allkeys-lru"
        client.acl_setuser(
            "few", enabled=True, passwords=["+secret"], keys=["*"],
            categories=["+@all"], commands=["-info", "-config"],
        )  # fmt: skip
        assert asyncio.run(asked(server.url.replace("//", "//few:secret@"))) == ""
        client.config_set("maxmemory-policy", "volatile-lru")
        assert asyncio.run(asked(server.url)) == ""
        client.close()
