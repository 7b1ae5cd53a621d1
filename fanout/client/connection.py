"""A connected client, and the jobs that it starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Literal

from pydantic import ValidationError

from fanout.client.claim import Claim
from fanout.client.documents import Doc, Docs
from fanout.client.feeder import BATCH, Window
from fanout.client.job import Job, new_job_id
from fanout.client.ledger import Ledger
from fanout.client.resumption import Judged, collected_of
from fanout.client.source import Source
from fanout.errors import JobError, Unavailable, UsageError
from fanout.registry import load_kind
from fanout.settings import Settings, load_settings
from fanout.store import Checkpoint, JobInfo, RedisStore, Store
from fanout.store.patience import Patience, patient
from fanout.task import Task
from fanout.timeouts import check_timeouts
from fanout.wire import JobSpec

log = logging.getLogger(__name__)

#: Tries of one call before `Patience` takes over: enough for a connection that has been closed.
_RETRIES = 3
#: Seconds that Redis may take to be told of an end.
_TOLD_S = 5.0


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
    patience = Patience(settings.redis_name, settings.wait_for_redis_s)
    impatient = store or RedisStore.from_url(
        settings.redis_url, settings.redis_name, retries=_RETRIES
    )
    store = store or patient(impatient, patience)
    client = Fanout(settings, store, impatient, patience)
    try:
        await store.ping()
        try:
            yield client
            await client.submitted()
        except BaseException:
            await asyncio.shield(client.abandon())
            raise
        finally:
            await client.let_go()
    finally:
        await store.aclose()


class Fanout:
    """A connected client; made by `connect`.

    Attributes:
        settings: as it was connected with.
        store: what its jobs use; it waits while Redis is away.
        impatient: the same, but it fails at once.
        patience: whether Redis answers.
        tell: told in a sentence when Redis goes, comes back, or has lost something that was
            mended; the log unless set.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        impatient: Store | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.impatient = impatient or store
        self.patience = patience or Patience(settings.redis_name, settings.wait_for_redis_s)
        self.patience.tell = self._say
        self.tell: Callable[[str], None] = log.warning
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
        ledger: Ledger | None = None,
        broken: Literal["cancel", "pause"] = "cancel",
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
            ledger: takes in what is collected; empty.
            broken: what becomes of the job when reading `docs` fails; a paused one goes on with
                `resume`.
            params: the task kind's parameters, such as `schema` and `prompt`.

        Raises:
            UsageError: no such kind or tier, or the parameters are not the kind's.
            ConfigError: an endpoint's timeout_s is too short for what the job may take.
            Unavailable: Redis does not answer.
        """
        spec = self.spec(kind, tier=tier, results=results, **params)
        size = self._window_of(spec.tier, window)
        identity = job_id or new_job_id()
        await self.store.create(identity, spec)
        job = Job(
            self.store,
            identity,
            spec,
            ledger=ledger,
            keep_s=self.settings.keep_jobs_s,
            broken=broken,
            tell=self._say,
        )
        job.feed(Source(docs, identity, spec.tier), size)
        self._jobs.append(job)
        return job

    def spec(
        self,
        kind: str | type[Task],
        *,
        tier: str | None = None,
        results: bool = False,
        **params: Any,
    ) -> JobSpec:
        """What `submit` would put into Redis for a job; takes what it takes, and raises the same.

        Two jobs with equal specs do the same work on the same documents.
        """
        task = kind if isinstance(kind, type) else load_kind(kind)
        try:
            checked = task.Params.model_validate(params)
        except ValidationError as error:
            raise UsageError(f"{task.name}: {_first_problem(error)}") from None
        check_timeouts(self.settings.endpoints_of(self.settings.tier_or_default(tier)), checked)
        return JobSpec(
            kind=task.name,
            tier=self.settings.tier_or_default(tier),
            params=checked.model_dump(mode="json", by_alias=True, exclude_none=True),
            results=results,
        )

    async def resume(
        self,
        job_id: str,
        docs: Docs,
        *,
        window: int | None = None,
        ledger: Ledger | None = None,
        spec: JobSpec | None = None,
        checkpoint: Checkpoint | None = None,
        accept_changes: bool = False,
    ) -> Job:
        """Go on with a job that was paused, or whose client died; returns when that is settled.

        What has been collected is not done again, what waits in Redis is left to be collected,
        what is queued or running is let be, and the rest is submitted. `docs` are the documents of
        the job from its first; that they are the same is checked before anything is submitted.

        Args:
            job_id: its id.
            docs: the same documents; more may have come behind them. A function that opens them
                lets them be read twice where too many have no record yet to be kept in memory.
            window: as in `submit`.
            ledger: the records that the output holds; None = as Redis knows: what was read from it
                by `records` or `batches` has been collected.
            spec: what the job was made with, for a Redis that has lost it.
            checkpoint: how far the input had been submitted, as the client noted it.
            accept_changes: take the documents as they are, for what has no record yet.

        Raises:
            ChangedInput: the documents are not those that the job has been given so far.
            JobError: there is no such job, or it is cancelled.
            Collected: another process collects it.
            Unavailable: Redis does not answer.
        """
        claim = Claim(self.store, job_id)  # before anything is judged by what can be taken away
        await claim.take()
        try:
            return await self._resumed(
                claim, job_id, docs, window, ledger, spec, checkpoint, accept=accept_changes
            )
        except BaseException:
            await claim.let_go()
            raise

    async def _resumed(
        self,
        claim: Claim,
        job_id: str,
        docs: Docs,
        window: int | None,
        ledger: Ledger | None,
        spec: JobSpec | None,
        checkpoint: Checkpoint | None,
        *,
        accept: bool,
    ) -> Job:
        info = await self._known(job_id, lost=spec is not None and ledger is not None)
        made = spec if info is None else info.spec
        collected = ledger
        if collected is None and info is not None:
            collected = await collected_of(self.store, info)
        if made is None or collected is None:
            raise JobError(f"there is no job {job_id}")
        known = (checkpoint, info.input if info is not None else None)
        size = self._window_of(made.tier, window)
        judged = Judged(
            docs,
            job_id,
            made.tier,
            [one for one in known if one is not None and one.count],
            collected,
            max(2 * size.size, 2 * BATCH),
        )
        await judged.judge(accept=accept)
        begun = await judged.begin(self.store, made, written=ledger is not None)
        job = Job(
            self.store,
            job_id,
            made,
            ledger=collected,
            keep_s=self.settings.keep_jobs_s,
            claim=claim,
            tell=self._say,
            broken="pause",
        )
        job.feed(judged.source, size, begun)
        self._jobs.append(job)
        return job

    async def _known(self, job_id: str, *, lost: bool) -> JobInfo | None:
        try:
            return await self.store.get(job_id)
        except JobError:
            if not lost:  # nobody else could tell either what it was
                raise
            return None

    async def job(
        self, job_id: str, *, ledger: Ledger | None = None, claim: Claim | None = None
    ) -> Job:
        """A job submitted earlier, here or elsewhere.

        Args:
            job_id: its id.
            ledger: what its output has.
            claim: to collect it, if it has been taken already.

        Raises:
            JobError: there is none of that id.
        """
        info = await self.store.get(job_id)
        keep_s = self.settings.keep_jobs_s
        return Job(self.store, job_id, info.spec, ledger=ledger, keep_s=keep_s, claim=claim)

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
                # Redis is away: there is nothing to tell it, and who leaves does not wait for it.
                with suppress(Unavailable, TimeoutError):
                    async with asyncio.timeout(_TOLD_S):
                        await job.cancel()

    async def let_go(self) -> None:
        """Let others collect the jobs of this client."""
        for job in self._jobs:
            await job.let_go()

    def _say(self, words: str) -> None:
        self.tell(words)

    def _window_of(self, tier: str, window: int | None) -> Window:
        if window is not None and window < 1:
            raise UsageError("the window holds at least one item")
        if window or self.settings.window:
            return Window(window or self._window(tier))
        return Window(self._window(tier), partial(self._raised, tier))

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
