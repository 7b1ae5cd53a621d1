"""What one worker process holds while it runs: store, connections, permits, the item runner.

Opened and closed on the event loop that runs the items.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress

import httpx
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fanout import Settings, Task, Unavailable
from fanout.aio import ended
from fanout.lifeline import Lifeline, common_folder
from fanout.store import RedisStore, Store, WorkerInfo
from fanout.store.connecting import client_of
from fanout_workers.attempts import Asker
from fanout_workers.health import Health
from fanout_workers.item import ItemRunner
from fanout_workers.jobs import Jobs
from fanout_workers.leader import Leaders
from fanout_workers.leases import Leases
from fanout_workers.model import ModelClient, open_transport
from fanout_workers.permits import Permits
from fanout_workers.server_page import ServerPage
from fanout_workers.tally import Tally

log = logging.getLogger(__name__)

#: How often a worker says that it lives, and how long that holds, in seconds.
_REPORT_EVERY_S = 2.0
_REPORT_TTL_S = 10.0
#: Seconds between two looks at the endpoints while one of them is not well.
_UNWELL_S = 0.5
#: How long an item that has ended may wait for others, to be written with them, in seconds. Its
#: permit is free by then, and the items beyond those in flight fill its place.
_LINGER_S = 0.025


class Runtime:
    """One worker process of one tier.

    Args:
        settings: endpoints and Redis.
        tier: the tier to serve.
        name: the worker's node name.
        kinds: the task kinds it can run.
        steers: whether it is a worker, which fetches items and takes part in finding the N of
            "auto"; else a child of one.
    """

    def __init__(
        self,
        settings: Settings,
        tier: str,
        name: str,
        kinds: Mapping[str, type[Task]],
        *,
        steers: bool = True,
    ) -> None:
        self._steers = steers
        self._settings = settings
        self._tier = tier
        self._name = name
        self._kinds = kinds
        #: What is in flight; its figures may be read from other threads.
        self.permits = Permits(settings.endpoints_of(tier))
        self._stopping = asyncio.Event()
        self._store: Store | None = None
        self._transport: httpx.AsyncBaseTransport | None = None
        self._reporters: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: ItemRunner | None = None
        self._problems: dict[str, str] = {}
        self._lease_client: redis.asyncio.Redis | None = None
        self._leases: Leases | None = None
        self._jobs: Jobs | None = None
        self._leaders: Leaders | None = None
        self._holder = f"{name}/{uuid.uuid4().hex[:8]}"
        self._lifeline = Lifeline(self._holder, common_folder())

    @property
    def runner(self) -> ItemRunner:
        """Runs items; there only between `open` and `close`."""
        if self._runner is None:
            raise RuntimeError("the worker's runtime is not open")
        return self._runner

    async def open(self) -> None:
        """Connect; must run on the loop that runs the items."""
        self._loop = asyncio.get_running_loop()
        self._store = RedisStore.from_url(
            self._settings.redis_url, self._settings.redis_name, linger_s=_LINGER_S
        )
        self._transport = open_transport()
        # A client of its own: a renewal must not wait behind other calls, nor be tried again by
        # the library when its time has passed.
        self._lease_client = client_of(
            self._settings.redis_url,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=2.0,
            socket_timeout=2.0,
        )
        endpoints = self._settings.endpoints_of(self._tier)
        clients = {one.name: ModelClient(one, self._transport) for one in endpoints}
        health = Health(clients, self.permits)
        self._note_problems(await health.problems(first=True))
        pages = {one.name: ServerPage(one, self._transport) for one in endpoints}
        tallies = {one.name: Tally(one.stream) for one in endpoints}
        self._leases = Leases(
            self._lease_client,
            self.permits,
            endpoints,
            self._holder,
            looks=pages,
            patience=lambda name: clients[name].longest_s,
            has_ended=self._lifeline.is_dead,
            fetches=self._steers,
        )
        self._lifeline.open()
        await self._leases.open()
        self._jobs = Jobs(self._store, self._kinds)
        self._jobs.on_cancelled = self._news.set
        self._jobs.open()
        self._runner = ItemRunner(
            self._tier,
            self._store,
            self._jobs,
            Asker(self.permits, clients, self._stopping, tallies),
        )
        if self._steers:
            self._leaders = Leaders(
                self._lease_client, self._store, endpoints, tallies, pages, self._holder,
                self._settings.auto_poll_s,
            )  # fmt: skip
            await self._leaders.open()
        self._reporters = [
            asyncio.create_task(self._report(self._store, health), name="worker report"),
            asyncio.create_task(self._report_news(self._store), name="worker news"),
        ]

    async def close(self) -> None:
        """Say goodbye and let go of all connections."""
        for reporter in self._reporters:
            await ended(reporter)
        if self._leaders is not None:
            await self._leaders.close()
        if self._jobs is not None:
            await self._jobs.aclose()
        if self._leases is not None and self._lease_client is not None:
            await self._leases.close()
            await self._lease_client.aclose()
        self._lifeline.close()
        if self._store is not None:
            with suppress(Unavailable):  # then its time to live ends it
                await self._store.forget_worker(self._info())
            await self._store.aclose()
        if self._transport is not None:
            await self._transport.aclose()

    def begin_stop(self) -> None:
        """Let what is in flight finish, and send the rest back; callable from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)

    def send_back(self) -> None:
        """Give what has not started back to the queue; callable from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.permits.send_back)

    def _info(self) -> WorkerInfo:
        return WorkerInfo(
            name=self._name,
            tier=self._tier,
            in_flight=self.permits.in_flight(),
            capacity=self.permits.limits(),
            kinds=tuple(self._kinds),
            problems=self._problems,
            circuits={load.endpoint.name: load.circuit.state for load in self.permits.loads()},
            jobs=self._jobs.in_flight() if self._jobs else {},
            aborted=self._jobs.aborted_figures() if self._jobs else {},
        )

    async def _report(self, store: Store, health: Health) -> None:
        due = 0.0
        while True:
            if time.monotonic() >= due:
                due = time.monotonic() + _REPORT_EVERY_S
                try:
                    await store.report_worker(self._info(), _REPORT_TTL_S)
                except Unavailable as error:
                    log.warning("%s", error)
            await asyncio.sleep(_UNWELL_S if self._problems else _REPORT_EVERY_S)
            self._note_problems(await health.problems())

    async def _report_news(self, store: Store) -> None:
        # Beside the reports, which may wait for an endpoint: who cancels a job waits for this.
        while True:
            await self._news.wait()
            self._news.clear()
            with suppress(Unavailable):  # the next report tells it
                await store.report_worker(self._info(), _REPORT_TTL_S)

    def _note_problems(self, problems: dict[str, str]) -> None:
        for name, problem in problems.items():
            if name not in self._problems:
                log.warning("endpoint %s: %s", name, problem)
        for name in self._problems.keys() - problems.keys():
            log.warning("endpoint %s answers again", name)
        self._problems = problems
