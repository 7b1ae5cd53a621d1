"""A submitted job: it is fed in the background, and its records are read."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)

from fanout.aio import ended
from fanout.client.documents import Doc, chunks, payload_of
from fanout.inputs import BadRow
from fanout.store import JobInfo, Store
from fanout.wire import ErrorInfo, Item, JobSpec, Record, Timing

#: Items in one round trip to Redis.
_BATCH = 500
#: How often a full window is looked at again, in seconds.
_WINDOW_POLL_S = 0.05
#: How long one read waits for a record, in seconds.
_READ_S = 0.5


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
        async for chunk in chunks(docs, max(1, min(_BATCH, window // 4))):
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
                ordinal=ordinal,
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
