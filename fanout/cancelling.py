"""Cancelling a job, and finding out whether it has ended everywhere.

The workers abort the job's requests by closing their connections. That does not stop every
generation at every server (vllm#54947), so the servers are asked as well, where they tell.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from fanout.errors import FanoutError
from fanout.server_metrics import read_server_metrics
from fanout.settings import Endpoint
from fanout.store import JobInfo, Store, WorkerInfo
from fanout.wire import ErrorInfo, Item, Record, Timing

#: Seconds between two looks at what is left.
_LOOK_S = 0.1
#: Seconds for an answer of a server.
_ANSWER_S = 3.0


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What a cancellation has come to.

    Attributes:
        was_done: the job had ended before; nothing was done.
        aborted: requests that workers have aborted.
        interrupted: items that those requests were of.
        not_started: items that have ended without being at a server just then.
        running: requests of the job that workers still have at a server.
        open: items that have not ended.
        at_server: requests that a server has beyond those of which workers know, by endpoint;
            None where it does not tell.
    """

    was_done: bool = False
    aborted: int = 0
    interrupted: int = 0
    not_started: int = 0
    running: int = 0
    open: int = 0
    at_server: dict[str, int | None] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Requests that are still at a server, as far as anybody tells."""
        return self.running or sum(count or 0 for count in self.at_server.values())

    @property
    def is_over(self) -> bool:
        """Whether nothing of the job is left."""
        return not (self.open or self.left)


class Canceller:
    """Cancels one job.

    Args:
        store: where the job is.
        endpoints: the endpoints of its tier.
        client: connections to them.
    """

    def __init__(
        self, store: Store, endpoints: Sequence[Endpoint], client: httpx.AsyncClient
    ) -> None:
        self._store = store
        self._endpoints = endpoints
        self._client = client

    async def cancel(self, job: str, patience_s: float) -> Cancelled:
        """Cancel the job, and wait up to `patience_s` seconds until nothing of it is left.

        Raises:
            JobError: the job is unknown.
            Unavailable: Redis does not answer.
        """
        info = await self._store.get(job)
        if info.done:
            return Cancelled(was_done=True)
        # What other clients have at the servers stays there, and is none of ours.
        strangers = await self._unknown(await self._workers(info), {})
        ended_before = info.counts.cancelled
        await self._store.cancel(job)
        deadline = time.monotonic() + patience_s
        await self._store.end_queued(job, _record_of)
        while True:
            found = await self._look(job, ended_before, strangers)
            if found.is_over or time.monotonic() >= deadline:
                return found
            await asyncio.sleep(_LOOK_S)

    async def _look(
        self, job: str, ended_before: int, strangers: Mapping[str, int | None]
    ) -> Cancelled:
        info = await self._store.get(job)
        workers = await self._workers(info)
        figures = [worker.aborted.get(job, [0, 0]) for worker in workers]
        running = sum(worker.jobs.get(job, 0) for worker in workers)
        interrupted = sum(items for _, items in figures)
        is_quiet = not running and not info.counts.open
        return Cancelled(
            aborted=sum(requests for requests, _ in figures),
            interrupted=interrupted,
            not_started=max(0, info.counts.cancelled - ended_before - interrupted),
            running=running,
            open=info.counts.open,
            at_server=await self._unknown(workers, strangers) if is_quiet else {},
        )

    async def _workers(self, info: JobInfo) -> Sequence[WorkerInfo]:
        return await self._store.workers(info.spec.tier)

    async def _unknown(
        self, workers: Sequence[WorkerInfo], strangers: Mapping[str, int | None]
    ) -> dict[str, int | None]:
        """Requests at each server beyond those of the workers and of strangers."""
        loads = await asyncio.gather(*(self._load(endpoint) for endpoint in self._endpoints))
        left: dict[str, int | None] = {}
        for endpoint, load in zip(self._endpoints, loads, strict=True):
            name = endpoint.name
            known = sum(worker.in_flight.get(name, 0) for worker in workers)
            left[name] = None if load is None else max(0, load - known - (strangers.get(name) or 0))
        return left

    async def _load(self, endpoint: Endpoint) -> int | None:
        """Requests that run or wait at the server; None if it does not tell."""
        try:
            key = endpoint.key()
            reply = await self._client.get(
                f"{endpoint.root}/metrics",
                headers={"authorization": f"Bearer {key}"} if key else {},
                timeout=_ANSWER_S,
            )
        except (httpx.HTTPError, OSError, FanoutError):
            return None
        load = read_server_metrics(reply.text) if reply.status_code == 200 else None
        if load is None or load.running is None:
            return None
        return round(load.running + (load.waiting or 0.0))


def _record_of(item: Item) -> Record:
    return Record(
        id=item.id,
        ordinal=item.ordinal,
        status="cancelled",
        error=ErrorInfo(kind="cancelled", message="the job was cancelled before this was sent"),
        timing=Timing(finished_at=round(time.time(), 3)),
    )
