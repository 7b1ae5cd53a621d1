"""Cancelling a job: what is asked of the store, the workers and the servers, and what is said."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from fanout import Endpoint, Item, JobSpec, Record
from fanout.cancelling import Cancelled, Canceller
from fanout.cli.cancel import sentence
from fanout.store import WorkerInfo
from fanout.testing import MemoryStore

pytestmark = pytest.mark.anyio

SPEC = JobSpec(kind="echo", tier="heavy")
WORKER = WorkerInfo("w1", "heavy", in_flight={"spark": 0}, aborted={"j": [3, 2]})


class Server:
    """A server's /metrics: how much runs there at each look, the last for ever."""

    def __init__(self, *running: int | None) -> None:
        self.running = list(running)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/metrics"
        now = self.running.pop(0) if len(self.running) > 1 else self.running[0]
        if now is None:
            return httpx.Response(404)
        return httpx.Response(200, text=f"vllm:num_requests_running {now}\n")


async def cancelled(
    store: MemoryStore, server: Server, workers: list[WorkerInfo], patience_s: float = 20.0
) -> Cancelled:
    for worker in workers:
        await store.report_worker(worker, 100)
    async with httpx.AsyncClient(transport=httpx.MockTransport(server)) as client:
        endpoint = Endpoint(name="spark", url="http://spark", tier="heavy")
        return await Canceller(store, [endpoint], client).cancel("j", patience_s)


@pytest.fixture
async def store() -> MemoryStore:
    """Ten items queued, of which a worker has taken two."""
    store = MemoryStore()
    await store.create("j", SPEC)
    await store.submit(
        "j", SPEC, [Item(id=str(n), payload={}, ordinal=n, job="j") for n in range(10)]
    )
    for _ in range(2):
        assert store.take("heavy")
    await store.seal("j")
    return store


async def settle(store: MemoryStore, *ordinals: int) -> None:
    for n in ordinals:
        await store.settle("j", n, Record(id=str(n), ordinal=n, status="cancelled"))


async def test_it_waits_until_the_workers_have_ended_theirs(store: MemoryStore) -> None:
    busy = replace(WORKER, jobs={"j": 3}, in_flight={"spark": 3})
    running = asyncio.create_task(cancelled(store, Server(3, 0), [busy]))
    async with asyncio.timeout(20):
        while (await store.get("j")).counts.cancelled < 8:
            await asyncio.sleep(0.01)
    await settle(store, 0, 1)
    await asyncio.sleep(0)
    assert not running.done()  # the worker has not said that its requests have ended
    await store.report_worker(WORKER, 100)
    found = await running
    assert found == Cancelled(False, 3, 2, 8, 0, 0, {"spark": 0})
    assert sentence("j", found) == (
        "job j is cancelled: 3 requests aborted, 0 left at the server, 8 had not started"
    )
    assert await store.queued("heavy") == 0


async def test_a_server_that_goes_on_is_told(store: MemoryStore) -> None:
    await settle(store, 0, 1)
    found = await cancelled(store, Server(0, 7), [WORKER], patience_s=0.0)
    assert (found.left, found.is_over) == (7, False)
    assert "7 left at the server" in sentence("j", found)
    assert "spark still works on requests of which no worker knows" in sentence("j", found)


async def test_what_other_clients_and_jobs_have_there_is_not_counted(store: MemoryStore) -> None:
    await settle(store, 0, 1)
    other = replace(WORKER, in_flight={"spark": 4}, jobs={"k": 4})
    found = await cancelled(store, Server(9, 9), [other], patience_s=0.0)
    assert found.is_over


async def test_a_server_that_does_not_tell(store: MemoryStore) -> None:
    await settle(store, 0, 1)
    found = await cancelled(store, Server(None), [WORKER])
    assert found.is_over
    assert "spark does not tell what runs there" in sentence("j", found)


async def test_items_of_a_worker_that_has_died_are_told(store: MemoryStore) -> None:
    found = await cancelled(store, Server(0), [], patience_s=0.0)
    assert (found.open, found.not_started, found.is_over) == (2, 8, False)
    assert "2 items have not ended" in sentence("j", found)


async def test_a_job_that_is_done_is_left_alone(store: MemoryStore) -> None:
    for n in range(10):
        await store.settle("j", n, Record(id=str(n), ordinal=n, status="ok"))
    found = await cancelled(store, Server(0), [])
    assert found.was_done
    assert await store.state("j") == "sealed"


def test_what_was_ended_before_is_not_counted_again() -> None:
    told: dict[str, Any] = {"aborted": 212, "interrupted": 212, "not_started": 9788}
    assert "212 requests aborted, 0 left at the server, 9,788 had not started" in sentence(
        "j", Cancelled(**told)
    )
