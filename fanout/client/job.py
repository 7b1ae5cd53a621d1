"""A submitted job: it is fed in the background, and its records are read."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Literal

from fanout.aio import ended
from fanout.client.claim import Claim
from fanout.client.feeder import Begun, Feeder, Window
from fanout.client.ledger import Ledger
from fanout.client.reconciler import Reconciler
from fanout.client.source import Source
from fanout.store import Checkpoint, JobInfo, Store
from fanout.wire import Item, JobSpec, Record

log = logging.getLogger(__name__)

#: How long one read waits for a record, in seconds.
_READ_S = 0.5


class Job:
    """One submitted job.

    Args:
        store: where it is.
        identity: its id.
        spec: what its items share.
        ledger: the records that are safe in its output.
        keep_s: seconds after which Redis forgets it when it is done and collected.
        claim: to collect it, if it has been taken already.
        broken: what becomes of it when reading its input fails.
        tell: told in a sentence of losses of Redis that were mended; the log unless given.
    """

    def __init__(
        self,
        store: Store,
        identity: str,
        spec: JobSpec,
        *,
        ledger: Ledger | None = None,
        keep_s: float | None = None,
        claim: Claim | None = None,
        broken: Literal["cancel", "pause"] = "cancel",
        tell: Callable[[str], None] = log.warning,
    ) -> None:
        self.id = identity
        self.spec = spec
        self.ledger = Ledger() if ledger is None else ledger
        self._store = store
        self._keep_s = keep_s
        self._broken = broken
        self._claim = claim or Claim(store, identity)
        self._collecting = False
        self._feeder = Feeder(store, identity, spec, self.ledger, lambda: self._collecting, tell)
        self._reconciler = Reconciler(store, identity, spec, self._feeder, tell)
        self._feeding: asyncio.Task[None] | None = None
        #: Whether what ended the feeding has been raised to the user.
        self.told = False

    @property
    def feeding(self) -> bool:
        """Whether there are documents left to submit."""
        return self._feeding is not None and not self._feeding.done()

    @property
    def outstanding(self) -> dict[int, Item]:
        """Items submitted here whose records have not been collected, by ordinal."""
        return self._feeder.outstanding

    @property
    def checkpoint(self) -> Checkpoint:
        """How far the input has been handed over: no record of a later document can come."""
        return self._feeder.checkpoint

    def feed(self, source: Source, window: Window, begun: Begun | None = None) -> None:
        """Start to submit what `source` gives in the background."""
        feeding = self._feed(source, window, begun or Begun())
        self._feeding = asyncio.create_task(feeding, name=f"feed {self.id}")

    async def submitted(self) -> None:
        """Wait until every document has been submitted; raises what reading them raised."""
        if self._feeding is not None:
            # Not awaited itself: a feeder that `cancel` ended must not cancel who waits here.
            await asyncio.wait([self._feeding])
            self._raise_feeding_error()

    async def info(self) -> JobInfo:
        """The job's state and counts now."""
        return await self._store.get(self.id)

    async def cancel(self) -> None:
        """End what has not started; what runs is left to finish. There is no way back."""
        await self._stop_feeding()
        await self._store.cancel(self.id)
        if self._keep_s is not None:
            await self._store.keep(self.id, self._keep_s)

    async def pause(self) -> None:
        """Stop, to go on later: what runs is left to finish, what has not started waits.

        `Fanout.resume` goes on with it.
        """
        await self._stop_feeding()
        await self._store.pause(self.id)

    async def records(self) -> AsyncIterator[Record]:
        """Every record, in the order in which items end. One reader a job.

        A record is forgotten by Redis when its whole batch has been taken.
        """
        async for batch in self.batches():
            for record in batch:
                yield record

    async def batches(self, limit: int = 500) -> AsyncGenerator[Sequence[Record], None]:
        """Records as they come, up to `limit` at a time, each ordinal once.

        Redis forgets a batch when the next one is asked for, so a collector that makes each batch
        durable before it goes on loses nothing; and what its output holds already (`ledger`) does
        not come again.

        Raises:
            Collected: another process collects the job.
        """
        await self._claim.take()
        self._collecting = True
        # Only who collects knows all that has ended, and only who feeds all that was submitted.
        reconciling = asyncio.create_task(self._reconciler.run(), name=f"reconcile {self.id}")
        try:
            while True:
                self._raise_feeding_error()
                self._claim.check()
                # From the start: what has been collected is trimmed, and a store that comes back
                # with older data holds again what it had forgotten.
                batch = await self._store.read(self.id, "0-0", limit, _READ_S)
                if batch.records:
                    if new := self.ledger.new_of(batch.records):
                        yield new
                    async with self._feeder.agreeing:
                        self._feeder.collected(new)
                        await self._store.trim(self.id, batch.last)
                if len(batch.records) < limit and await self._all_read():
                    await self.submitted()  # raises what ended the feeding, if that ended the job
                    return
        finally:
            await ended(reconciling)
            self._collecting = False  # what nobody reads must not hold the feeder up
            await self._claim.let_go()

    async def wait(self) -> JobInfo:
        """Wait until every item has ended, leaving the records where they are."""
        await self.submitted()
        while not (info := await self._feeder.info()).done:
            await asyncio.sleep(_READ_S)
        return info

    async def let_go(self) -> None:
        """Let others collect it."""
        await self._claim.let_go()

    async def _all_read(self) -> bool:
        info = await self._feeder.info()
        # A paused job has no more to give once what was running has ended.
        over = info.done or (info.state == "paused" and info.counts.open == 0)
        if not over or await self._store.unread(self.id):
            return False
        if info.done and self._keep_s is not None:
            await self._store.keep(self.id, self._keep_s)
        return True

    async def _feed(self, source: Source, window: Window, begun: Begun) -> None:
        try:
            await self._feeder.feed(source, window, begun)
        except Exception:
            # The rest will never come: without this the job would stay open for ever.
            if self._broken == "cancel":
                await self._store.cancel(self.id)
            else:
                await self._store.pause(self.id)
            raise

    def _raise_feeding_error(self) -> None:
        feeding = self._feeding
        if feeding is None or not feeding.done() or feeding.cancelled():
            return
        if (error := feeding.exception()) is not None:
            self.told = True
            raise error

    async def _stop_feeding(self) -> None:
        if self.feeding and self._feeding is not None:
            await ended(self._feeding)


def new_job_id() -> str:
    """A job id that sorts by time and can be typed: `20260422-153001-1f9c`."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:4]}"
