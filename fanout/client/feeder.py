"""Submits a job's input, at most a window ahead of what has been collected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from fanout.client.ledger import Ledger
from fanout.client.source import Entry, Piece, Source
from fanout.errors import JobError
from fanout.store import Checkpoint, Forgotten, JobInfo, Store
from fanout.store.bits import has_bit, zeros_below
from fanout.wire import Item, JobSpec, Record

#: Items in one round trip to Redis.
BATCH = 500
#: How often a full window is looked at again, in seconds.
_WINDOW_POLL_S = 0.05


@dataclass(slots=True)
class Window:
    """How many items may be submitted and not yet collected.

    Attributes:
        size: that many.
        grows: asked now and then for a size that may be larger.
    """

    size: int
    grows: Callable[[], Awaitable[int]] | None = None

    @property
    def piece(self) -> int:
        """Items to submit at once: a piece as large as the window would let the server run dry."""
        return max(1, min(BATCH, self.size // 4))

    async def room(self) -> int:
        """The size now."""
        return self.size if self.grows is None else max(self.size, await self.grows())


@dataclass(slots=True)
class Begun:
    """What there is of a job that goes on.

    Attributes:
        upto: ordinals below are submitted already.
        held: entries that have been read and are not in the output, in order.
        read: how far the input has been read for them.
        again: ordinals below `upto` that have to be submitted again.
    """

    upto: Checkpoint = field(default_factory=Checkpoint)
    held: Sequence[Entry] = ()
    read: Checkpoint = field(default_factory=Checkpoint)
    again: Collection[int] = ()


class Feeder:
    """Feeds one job, and knows what is outstanding.

    Args:
        store: where the job is.
        job: its id.
        spec: what its items share.
        ledger: what has been collected.
        is_collecting: whether somebody reads the records.
        tell: told in a sentence of a loss that was mended.
    """

    def __init__(
        self,
        store: Store,
        job: str,
        spec: JobSpec,
        ledger: Ledger,
        is_collecting: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self._store = store
        self._job = job
        self._spec = spec
        self.ledger = ledger
        self._is_collecting = is_collecting
        self._tell = tell
        #: Items that were submitted and whose records have not been collected, by ordinal.
        self.outstanding: dict[int, Item] = {}
        #: The same for rows that could not be read.
        self.rejected: dict[int, Record] = {}
        #: How far the input has been handed over; known before the store is told.
        self.checkpoint = Checkpoint()
        #: How far the store has been told of it.
        self.submitted = Checkpoint()
        self._sealed = False
        #: Held while the ledger and the store are being made to agree.
        self.agreeing = asyncio.Lock()

    async def feed(self, source: Source, window: Window, begun: Begun) -> bool:
        """Submit everything and seal the job; False when it was stopped before the end."""
        self.checkpoint = self.submitted = begun.upto
        piece: Piece | None = Piece(list(begun.held), begun.read)
        while piece is not None:
            old = [entry for entry in piece.entries if _ordinal(entry) < begun.upto.count]
            for start in range(0, len(old), window.piece):
                if not await self._again(old[start : start + window.piece], window, begun.again):
                    return False
            if (new := piece.entries[len(old) :]) and not await self._submit(
                Piece(new, piece.upto), window
            ):
                return False
            piece = await source.piece(window.piece)
        self._sealed = True
        await self._store.seal(self._job)
        return True

    def collected(self, records: Sequence[Record]) -> None:
        """Note records that are safe in the output."""
        for record in records:
            self.ledger.add(record.ordinal, record.status)
            if record.ordinal is not None:
                self.outstanding.pop(record.ordinal, None)
                self.rejected.pop(record.ordinal, None)

    async def info(self) -> JobInfo:
        """The job as it stands; what the store has lost of it is restored before.

        Raises:
            JobError: the job is unknown, and nothing is known of it here either.
        """
        try:
            info = await self._store.get(self._job)
        except JobError:
            if not self.submitted.count:
                raise
        else:
            if info.input.count >= self.submitted.count:
                return info
        await self.restore()
        return await self._store.get(self._job)

    async def restore(self) -> None:
        """Tell a store that came back with older data, or with none, what it has to know."""
        async with self.agreeing:
            if not await self._agrees():  # else somebody else has seen to it meanwhile
                await self._mend(f"Redis has lost a part of job {self._job}")

    async def mend(self, loss: str) -> None:
        """Make the store agree with what is known here, and submit again what is nowhere.

        Args:
            loss: what was lost, in words.
        """
        async with self.agreeing:
            await self._mend(loss)

    async def _mend(self, loss: str) -> None:
        restored = await self._store.restore(
            self._job, self._spec, self.submitted, self.ledger.bits, self.ledger.counts
        )
        opened = zeros_below(restored.settled, self.submitted.count)
        nowhere = await withdrawn(self._store, self._job, self._spec.tier, opened, restored.dropped)
        again = [self.outstanding[n] for n in sorted(nowhere & self.outstanding.keys())]
        await self._store.resubmit(self._job, self._spec, [self._stamped(item) for item in again])
        for ordinal in nowhere & self.rejected.keys():
            await self._store.reject(self._job, ordinal, self.rejected[ordinal])
        if self._sealed:
            await self._store.seal(self._job)
        items = f"{len(again)} items are submitted again" if again else "no item is lost by that"
        self._tell(f"{loss}: {items}")

    async def _submit(self, piece: Piece, window: Window) -> bool:
        if not await self._room(len(piece.entries), window):
            return False
        items = [self._stamped(entry) for entry in piece.entries if isinstance(entry, Item)]
        rejected = [entry for entry in piece.entries if isinstance(entry, Record)]
        # Before the store is told: a record may come back before its reply does.
        self._expect(piece.entries)
        self.checkpoint = piece.upto
        while not await self._told(items, rejected, piece.upto):
            await self.restore()
        return True

    async def _told(
        self, items: Sequence[Item], rejected: Sequence[Record], upto: Checkpoint
    ) -> bool:
        async with self.agreeing:
            try:
                await self._store.submit(self._job, self._spec, items, rejected=rejected, upto=upto)
            except Forgotten:
                return False
            self.submitted = upto
        return True

    async def _agrees(self) -> bool:
        try:
            info = await self._store.get(self._job)
        except JobError:
            return False
        return info.input.count >= self.submitted.count

    async def _again(
        self, entries: Sequence[Entry], window: Window, wanted: Collection[int]
    ) -> bool:
        again = [entry for entry in entries if entry.ordinal in wanted]
        if again and not await self._room(len(again), window):
            return False
        # In one piece: a repair in between would submit them as well.
        async with self.agreeing:
            self._expect(entries)
            await self._store.resubmit(
                self._job, self._spec, [self._stamped(e) for e in again if isinstance(e, Item)]
            )
            for entry in again:
                if isinstance(entry, Record):
                    await self._store.reject(self._job, _ordinal(entry), entry)
        return True

    def _expect(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.ordinal is None or entry.ordinal in self.ledger:
                continue
            if isinstance(entry, Item):
                self.outstanding[entry.ordinal] = entry
            else:
                self.rejected[entry.ordinal] = entry

    async def _room(self, coming: int, window: Window) -> bool:
        """Wait until the window has room; False when the job is cancelled or paused meanwhile."""
        room = await window.room()
        while (info := await self.info()).state not in ("cancelled", "paused"):
            outstanding = info.counts.open
            if self._is_collecting():
                # Records nobody has written yet fill the memory of Redis just as items do.
                outstanding += await self._store.unread(self._job)
            elif len(self.outstanding) + len(self.rejected) + coming > room:
                await self._forget_settled()
            if outstanding + coming <= room:
                return True
            await asyncio.sleep(_WINDOW_POLL_S)
        return False

    async def _forget_settled(self) -> None:
        # Nobody collects here, so nobody says what has come: memory has to stay flat all the same.
        settled = await self._store.settled(self._job)
        for kept in (self.outstanding, self.rejected):
            for ordinal in [n for n in kept if has_bit(settled, n)]:
                kept.pop(ordinal)

    def _stamped(self, item: Item) -> Item:
        return item.model_copy(update={"submitted_at": time.time()})


async def withdrawn(
    store: Store, job: str, tier: str, opened: Collection[int], dropped: Collection[int]
) -> set[int]:
    """The open items that are nowhere, counted as not submitted any more."""
    given_back = set(dropped).intersection(opened)
    nowhere = await store.missing(job, tier, set(opened) - given_back)
    absent = nowhere | given_back
    return await store.withdraw(job, absent) if absent else set()


def _ordinal(entry: Entry) -> int:
    if entry.ordinal is None:
        raise ValueError("an entry of a job has an ordinal")
    return entry.ordinal
