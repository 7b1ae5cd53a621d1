"""A connected client, and the jobs that it starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from pydantic import ValidationError

from fanout.client.documents import Doc
from fanout.client.job import Job, new_job_id
from fanout.errors import Unavailable, UsageError
from fanout.registry import load_kind
from fanout.settings import Settings, load_settings
from fanout.store import RedisStore, Store
from fanout.task import Task
from fanout.timeouts import check_timeouts
from fanout.wire import JobSpec


@asynccontextmanager
async def connect(
    redis: str | None = None, *, settings: Settings | None = None, store: Store | None = None
) -> AsyncIterator[Fanout]:
    """A client, connected as long as the block lasts.

    Leaving the block waits until the documents of every job have been submitted; an exception
    cancels the jobs that are not, since nobody would ever submit the rest.

    Args:
        redis: URL of Redis or Valkey; from the settings when not given.
        settings: from fanout.toml and FANOUT_* when not given.
        store: another job store than the one at `redis`, for tests.

    Raises:
        ConfigError: the settings cannot be used.
        Unavailable: Redis does not answer.
    """
    settings = settings or load_settings(redis=redis)
    store = store or RedisStore.from_url(settings.redis_url, settings.redis_name)
    client = Fanout(settings, store)
    try:
        await store.ping()
        try:
            yield client
            await client.submitted()
        except BaseException:
            await asyncio.shield(client.abandon())
            raise
    finally:
        await store.aclose()


class Fanout:
    """A connected client; made by `connect`."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self._jobs: list[Job] = []

    async def submit(
        self,
        kind: str | type[Task],
        docs: Iterable[Doc] | AsyncIterable[Doc],
        *,
        tier: str | None = None,
        job_id: str | None = None,
        window: int | None = None,
        results: bool = False,
        **params: Any,
    ) -> Job:
        """Start a job and feed it in the background; returns at once.

        Args:
            kind: name of an installed task kind, such as `extract`; `module:Kind`; or the class.
            docs: read lazily, one window ahead of what is settled.
            tier: the tier that serves the job; needed only where several are configured.
            job_id: a new job's id; made up when not given.
            window: items submitted and not yet collected, at most.
            results: also keep each record in Celery's result backend.
            params: the task kind's parameters, such as `schema` and `prompt`.

        Raises:
            UsageError: no such kind or tier, or the parameters are not the kind's.
            ConfigError: an endpoint's timeout_s is too short for what the job may take.
            Unavailable: Redis does not answer.
        """
        task = kind if isinstance(kind, type) else load_kind(kind)
        try:
            checked = task.Params.model_validate(params)
        except ValidationError as error:
            raise UsageError(f"{task.name}: {_first_problem(error)}") from None
        if window is not None and window < 1:
            raise UsageError("the window holds at least one item")
        check_timeouts(self.settings.endpoints_of(self.settings.tier_or_default(tier)), checked)
        spec = JobSpec(
            kind=task.name,
            tier=self.settings.tier_or_default(tier),
            params=checked.model_dump(mode="json", by_alias=True, exclude_none=True),
            results=results,
        )
        identity = job_id or new_job_id()
        await self.store.create(identity, spec)
        job = Job(self.store, identity, spec)
        fixed = window or self.settings.window
        grows = None if fixed else partial(self._raised, spec.tier)
        job.feed(docs, window or self._window(spec.tier), grows)
        self._jobs.append(job)
        return job

    async def job(self, job_id: str) -> Job:
        """A job submitted earlier, here or elsewhere.

        Raises:
            JobError: there is none of that id.
        """
        info = await self.store.get(job_id)
        return Job(self.store, job_id, info.spec)

    async def submitted(self) -> None:
        """Wait until the documents of every job have been submitted.

        Raises what reading them raised, unless the job has told its user already.
        """
        for job in self._jobs:
            if not job.told:
                await job.submitted()

    async def abandon(self) -> None:
        """Cancel the jobs of this client whose documents have not all been submitted."""
        for job in self._jobs:
            if job.feeding:
                with suppress(Unavailable):  # Redis is away: there is nothing to tell it
                    await job.cancel()

    def _window(self, tier: str) -> int:
        if self.settings.window:
            return self.settings.window
        capacity = sum(endpoint.largest_n for endpoint in self.settings.endpoints_of(tier))
        return max(1024, 4 * capacity)

    async def _raised(self, tier: str) -> int:
        """The window for what N was set to at run time; 0 where it was not."""
        names = [endpoint.name for endpoint in self.settings.endpoints_of(tier)]
        found = [await self.store.endpoint(name) for name in names]
        return 4 * sum(info.concurrency or info.auto or 0 for info in found)


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
