"""The client: submit work, follow it, collect what it comes to.

async with fanout.connect() as fo:
    job = await fo.submit("extract", docs, schema=Posting)
    async for record in job.records():
        ...
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from fanout.aio import ended
from fanout.errors import Unavailable, UsageError
from fanout.inputs import BadRow, Document
from fanout.registry import load_kind
from fanout.settings import Settings, load_settings
from fanout.store import JobInfo, RedisStore, Store
from fanout.task import Task
from fanout.wire import ErrorInfo, Item, JobSpec, Record, Timing

#: What `submit` takes as one document: a text, an object with a payload (and maybe an `id`), a
#: document as `fanout.inputs` reads it, or a row that could not be read.
Doc = str | Mapping[str, Any] | Document | BadRow

#: Items in one round trip to Redis.
_BATCH = 500
#: How often a full window is looked at again, in seconds.
_WINDOW_POLL_S = 0.05
#: How long one read waits for a record, in seconds.
_READ_S = 0.5

_T = TypeVar("_T")


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
            Unavailable: Redis does not answer.
        """
        task = kind if isinstance(kind, type) else load_kind(kind)
        try:
            checked = task.Params.model_validate(params)
        except ValidationError as error:
            raise UsageError(f"{task.name}: {_first_problem(error)}") from None
        if window is not None and window < 1:
            raise UsageError("the window holds at least one item")
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


class Job:
    """One submitted job."""

    def __init__(self, store: Store, identity: str, spec: JobSpec) -> None:
        self.id = identity
        self.spec = spec
        self._store = store
        self._feeder: asyncio.Task[None] | None = None
        self._collecting = False
        #: Whether what ended the feeding has been raised to the user.
        self.told = False

    @property
    def feeding(self) -> bool:
        """Whether there are documents left to submit."""
        return self._feeder is not None and not self._feeder.done()

    def feed(
        self,
        docs: Iterable[Doc] | AsyncIterable[Doc],
        window: int,
        grows: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        """Start to submit `docs` in the background, at most `window` ahead of the settled ones.

        Args:
            docs: read lazily.
            window: items submitted and not settled.
            grows: asked now and then for a window that may be larger.
        """
        feeding = self._feed(docs, window, grows)
        self._feeder = asyncio.create_task(feeding, name=f"feed {self.id}")

    async def submitted(self) -> None:
        """Wait until every document has been submitted; raises what reading them raised."""
        if self._feeder is not None:
            # Not awaited itself: a feeder that `cancel` ended must not cancel who waits here.
            await asyncio.wait([self._feeder])
            self._raise_feeding_error()

    async def info(self) -> JobInfo:
        """The job's state and counts now."""
        return await self._store.get(self.id)

    async def cancel(self) -> None:
        """End what has not started; what runs is left to finish."""
        await self._stop_feeding()
        await self._store.cancel(self.id)

    async def records(self) -> AsyncIterator[Record]:
        """Every record, in the order in which items end. One reader a job.

        A record is forgotten by Redis when its whole batch has been taken.
        """
        async for batch in self.batches():
            for record in batch:
                yield record

    async def batches(self, limit: int = 500) -> AsyncGenerator[Sequence[Record], None]:
        """Records as they come, up to `limit` at a time.

        Redis forgets a batch when the next one is asked for, so a collector that makes each batch
        durable before it goes on loses nothing.
        """
        self._collecting = True
        cursor = "0-0"
        try:
            while True:
                self._raise_feeding_error()
                batch = await self._store.read(self.id, cursor, limit, _READ_S)
                if batch.records:
                    yield batch.records
                    cursor = batch.last
                    await self._store.trim(self.id, cursor)
                if len(batch.records) < limit and await self._all_read():
                    await self.submitted()  # raises what ended the feeding, if that ended the job
                    return
        finally:
            self._collecting = False  # what nobody reads must not hold the feeder up

    async def wait(self) -> JobInfo:
        """Wait until every item has ended, leaving the records where they are."""
        await self.submitted()
        while not (info := await self.info()).done:
            await asyncio.sleep(_READ_S)
        return info

    async def _all_read(self) -> bool:
        return (await self.info()).done and not await self._store.unread(self.id)

    async def _feed(
        self,
        docs: Iterable[Doc] | AsyncIterable[Doc],
        window: int,
        grows: Callable[[], Awaitable[int]] | None,
    ) -> None:
        try:
            await self._submit_all(docs, window, grows)
        except Exception:
            # The rest will never come: without this the job would stay open for ever.
            await self._store.cancel(self.id)
            raise
        await self._store.seal(self.id)

    async def _submit_all(
        self,
        docs: Iterable[Doc] | AsyncIterable[Doc],
        window: int,
        grows: Callable[[], Awaitable[int]] | None,
    ) -> None:
        ordinal = itertools.count()
        # In pieces of the window: one piece as large as it would wait for the server to run empty.
        async for chunk in _chunks(docs, max(1, min(_BATCH, window // 4))):
            room = window if grows is None else max(window, await grows())
            if not await self._room(len(chunk), room):
                return
            items: list[Item] = []
            for doc in chunk:
                item = self._item_of(doc, next(ordinal))
                if isinstance(item, Item):
                    items.append(item)
                else:
                    await self._store.reject(self.id, item[0], item[1])
            await self._store.submit(self.id, self.spec, items)

    async def _room(self, coming: int, window: int) -> bool:
        """Wait until the window has room; False when the job is cancelled meanwhile."""
        while (info := await self.info()).state != "cancelled":
            outstanding = info.counts.open
            if self._collecting:
                # Records nobody has written yet fill the memory of Redis just as items do.
                outstanding += await self._store.unread(self.id)
            if outstanding + coming <= window:
                return True
            await asyncio.sleep(_WINDOW_POLL_S)
        return False

    def _item_of(self, doc: Doc, ordinal: int) -> Item | tuple[int, Record]:
        now = time.time()
        if isinstance(doc, BadRow):
            return ordinal, Record(
                id=doc.id,
                status="skipped",
                error=ErrorInfo(
                    kind="input", message=f"{doc.source}: {doc.reason}", raw=doc.raw or None
                ),
                tier=self.spec.tier,
                timing=Timing(finished_at=now),
            )
        identity, payload = payload_of(doc, ordinal)
        return Item(id=identity, payload=payload, ordinal=ordinal, job=self.id, submitted_at=now)

    def _raise_feeding_error(self) -> None:
        feeder = self._feeder
        if feeder is None or not feeder.done() or feeder.cancelled():
            return
        if (error := feeder.exception()) is not None:
            self.told = True
            raise error

    async def _stop_feeding(self) -> None:
        feeder = self._feeder
        if feeder is None or feeder.done():
            return
        await ended(feeder)


def new_job_id() -> str:
    """A job id that sorts by time and can be typed: `20260422-153001-1f9c`."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:4]}"


def payload_of(doc: str | Mapping[str, Any] | Document, ordinal: int) -> tuple[str, Any]:
    """(id, payload) of a document; `ordinal` is the id of one that has none."""
    if isinstance(doc, str):
        return str(ordinal), {"text": doc}
    if isinstance(doc, Document):
        return doc.id, {"text": doc.text, "meta": doc.meta} if doc.meta else {"text": doc.text}
    payload = {key: value for key, value in doc.items() if key != "id"}
    return str(doc.get("id", ordinal)), payload


async def _chunks(docs: Iterable[Doc] | AsyncIterable[Doc], size: int) -> AsyncIterator[list[Doc]]:
    if isinstance(docs, AsyncIterable):
        chunk: list[Doc] = []
        async for doc in docs:
            chunk.append(doc)
            if len(chunk) == size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        return
    documents: Iterator[Doc] = iter(docs)
    # Reading files blocks, and the collector runs on this loop.
    while taken := await _in_thread(lambda: list(itertools.islice(documents, size))):
        yield taken


async def _in_thread(call: Callable[[], _T]) -> _T:
    """What `call` returns, computed in a daemon thread of its own.

    `asyncio.to_thread` would be waited for at the end of the program: a read of a terminal or a
    pipe that gives nothing would then hold up Ctrl-C for ever.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def finish(result: _T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(_T, result))

    def run() -> None:
        result: _T | None = None
        failed: BaseException | None = None
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - handed over to who waits
            failed = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(finish, result, failed)

    threading.Thread(target=run, name="fanout reader", daemon=True).start()
    return await done


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
