"""Looking: what Redis knows, and what the model servers say of themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import httpx

from fanout.errors import ConfigError, JobError, Unavailable
from fanout.server_metrics import ServerLoad, read_server_metrics
from fanout.settings import Endpoint, Settings
from fanout.stall.sight import ServerSight, Sight
from fanout.store import EndpointInfo, Store, WorkerInfo
from fanout.wire import JobSpec

#: Seconds that Redis may take for all that is asked, and a server for its page.
_REDIS_S = 10.0
_PAGE_S = 3.0
#: Bytes of a page that are read: vLLM's has some 100,000.
_PAGE_BYTES = 4 * 2**20


class Looker:
    """Looks at a job that is silent, and remembers enough to tell what moves.

    Args:
        store: where the job is; one that does not wait while Redis is away.
        settings: the endpoints.
        job: the job's id.
        spec: of the job.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        job: str,
        spec: JobSpec,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._endpoints = settings.endpoints_of(spec.tier)
        self._redis_name = settings.redis_name
        self._job = job
        self._spec = spec
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._queued: int | None = None
        self._loads: dict[str, tuple[ServerLoad, float, float]] = {}
        self._settled: dict[str, int] = {}

    async def look(self, sight: Sight) -> Sight:
        """`sight` with what Redis and the servers show; never raises for what it finds."""
        try:
            async with asyncio.timeout(_REDIS_S):
                return await self._looked(sight)
        except TimeoutError:
            return replace(sight, redis=f"Redis at {self._redis_name} does not answer")
        except Unavailable as error:
            return replace(sight, redis=str(error))

    async def _looked(self, sight: Sight) -> Sight:
        workers = await self._store.workers(self._spec.tier)
        queued = await self._store.queued(self._spec.tier)
        infos = [await self._store.endpoint(one.name) for one in self._endpoints]
        busy = {name for worker in workers for name, count in worker.in_flight.items() if count}
        loads = await asyncio.gather(
            *(_load_of(one, asked=one.name in busy) for one in self._endpoints)
        )
        moved, self._queued = self._queued != queued, queued
        try:
            info = await self._store.get(self._job)
        except JobError:
            return replace(sight, state=None, workers=workers)
        return replace(
            sight,
            state=info.state,
            open=info.counts.open,
            workers=workers,
            silent=self._silent(workers),
            queued=queued,
            moved=moved,
            endpoints=[
                self._server(*one) for one in zip(self._endpoints, infos, loads, strict=True)
            ],
            others=await self._others(),
        )

    async def note_workers(self) -> None:
        """Remember who is there while all is well, to name those who go."""
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(_REDIS_S):
                self._silent(await self._store.workers(self._spec.tier))

    def _silent(self, workers: Sequence[WorkerInfo]) -> Mapping[str, float]:
        now, there = self._clock(), {worker.name for worker in workers}
        self._seen.update(dict.fromkeys(there, now))
        return {name: now - at for name, at in self._seen.items() if name not in there}

    def _server(
        self, endpoint: Endpoint, info: EndpointInfo, load: ServerLoad | None
    ) -> ServerSight:
        set_n = info.concurrency if info.concurrency is not None else info.auto
        n = endpoint.first_n if set_n is None else set_n
        per_s, tokenless_s = self._tokens(endpoint.name, load)
        return ServerSight(endpoint.name, n, info.parts, info.ghosts, load, per_s, tokenless_s)

    def _tokens(self, name: str, load: ServerLoad | None) -> tuple[float | None, float]:
        """(tokens/s since the last look, seconds without a token)."""
        if load is None or load.generated is None:
            self._loads.pop(name, None)
            return None, 0.0
        now = self._clock()
        before, looked_at, moved_at = self._loads.get(name, (load, now, now))
        made = load.generated - (before.generated or 0.0)
        if made:  # a counter that falls is a server that has started anew
            moved_at = now
        self._loads[name] = (load, now, moved_at)
        if now <= looked_at:
            return None, 0.0
        return max(0.0, made) / (now - looked_at), 0.0 if made else now - moved_at

    async def _others(self) -> Mapping[str, int]:
        """Open items of the jobs of the tier that have got on since the last look."""
        found: dict[str, int] = {}
        for job in await self._store.jobs():
            if job == self._job:
                continue
            with suppress(JobError):  # forgotten meanwhile
                info = await self._store.get(job)
                before = self._settled.get(job)
                self._settled[job] = info.counts.settled
                if info.spec.tier == self._spec.tier and before not in (None, info.counts.settled):
                    found[job] = info.counts.open
        return found


async def _load_of(endpoint: Endpoint, *, asked: bool) -> ServerLoad | None:
    """What an endpoint says of its load, if it is asked and can be reached from here."""
    if not asked:
        return None
    # Reading the certificates takes a tenth of a second of computing.
    verify = endpoint.root.startswith("https:")
    try:
        key = endpoint.key()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with (
            asyncio.timeout(_PAGE_S),
            httpx.AsyncClient(headers=headers, verify=verify) as client,
            client.stream("GET", f"{endpoint.root}/metrics") as response,
        ):
            if response.status_code != 200:
                return None
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _PAGE_BYTES:
                    return None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, ConfigError):
        return None
    return read_server_metrics(body.decode("utf-8", errors="replace"))
