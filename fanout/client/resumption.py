"""Going on with a job: its input is judged before anything of it is submitted again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from fanout.client.documents import Docs
from fanout.client.feeder import BATCH, Begun, withdrawn
from fanout.client.ledger import Ledger
from fanout.client.source import Entry, Source
from fanout.errors import UsageError
from fanout.store import Batch, Checkpoint, JobInfo, Store
from fanout.store.bits import zeros_below
from fanout.wire import JobSpec


class ChangedInput(UsageError):
    """The input is not the one that the job has worked on so far."""


async def kept(store: Store, job: str) -> AsyncIterator[Batch]:
    """The records of a job that nobody has removed yet; reading removes none."""
    cursor = "0-0"
    while (batch := await store.read(job, cursor, BATCH, 0)).records:
        cursor = batch.last
        yield batch


async def collected_of(store: Store, info: JobInfo) -> Ledger:
    """What has been collected of a job, as the store alone knows: what ended and waits no more."""
    ledger = Ledger(await store.settled(info.id))  # before the records: none must seem collected
    counts = {name: getattr(info.counts, name) for name in ("ok", "invalid", "failed")}
    counts |= {name: getattr(info.counts, name) for name in ("skipped", "cancelled")}
    async for batch in kept(store, info.id):
        for record in batch.records:
            if record.ordinal is not None and ledger.discard(record.ordinal):
                counts[record.status] -= 1
    ledger.counts.update({name: max(0, count) for name, count in counts.items()})
    return ledger


class Judged:
    """An input that has been read as far as the job had got, and found to be the same.

    Args:
        docs: the documents; a function that opens them where they can be read twice.
        job: the job's id.
        tier: its tier.
        checkpoints: how far the input had been submitted, as different places know it.
        ledger: what the output holds.
        limit: entries that are not in the output and are kept in memory, at most.
    """

    def __init__(
        self,
        docs: Docs,
        job: str,
        tier: str,
        checkpoints: Sequence[Checkpoint],
        ledger: Ledger,
        limit: int,
    ) -> None:
        self._docs = docs
        self._job = job
        self._tier = tier
        self._checkpoints = checkpoints
        self._ledger = ledger
        self._limit = limit
        self.upto = max(checkpoints, key=lambda known: known.count, default=Checkpoint())
        self.source = self._opened([known.count for known in checkpoints])
        self.held: list[Entry] = []
        self.read = Checkpoint()
        self._overflowed = False

    def _opened(self, marks: Sequence[int] = ()) -> Source:
        docs = self._docs() if callable(self._docs) else self._docs
        return Source(docs, self._job, self._tier, marks)

    async def judge(self, *, accept: bool = False) -> None:
        """Read the input up to the last checkpoint.

        Args:
            accept: take it as it is.

        Raises:
            ChangedInput: it differs from what was submitted.
            UsageError: too much of it is missing in the output to be kept, and it cannot be read
                again.
        """
        while (left := self.upto.count - self.read.count) > 0:
            piece = await self.source.piece(min(left, BATCH))
            if piece is None:
                break
            self.read = piece.upto
            if not self._overflowed:
                self.held += [e for e in piece.entries if e.ordinal not in self._ledger]
                if len(self.held) > self._limit:
                    self._overflow()
            if not accept:
                self._compare()
        if self.read.count < self.upto.count and not accept:
            raise ChangedInput(
                f"the input has changed: it holds {self.read.count:,} of the {self.upto.count:,} "
                f"documents that job {self._job} had been given"
            )
        self.upto = Checkpoint(
            self.upto.count, self.source.digests.get(self.upto.count, self.upto.digest)
        )
        if self._overflowed:
            self.source, self.held, self.read = self._opened(), [], Checkpoint()

    def _overflow(self) -> None:
        if not callable(self._docs):
            raise UsageError(
                f"more than {self._limit:,} documents of job {self._job} have no record yet, which "
                "is too much to keep while the input is looked through: give it as files"
            )
        self._overflowed, self.held = True, []

    def _compare(self) -> None:
        for known in self._checkpoints:
            found = self.source.digests.get(known.count)
            if known.digest and found is not None and found != known.digest:
                raise ChangedInput(
                    f"the input has changed: its first {known.count:,} documents are not those "
                    f"that job {self._job} had been given"
                )

    async def begin(self, store: Store, spec: JobSpec, *, written: bool) -> Begun:
        """Open the job again; what has to be submitted again is counted out until it is.

        Args:
            store: where the job is.
            spec: what its items share.
            written: whether the ledger is the output's own, and stands against the store's.
        """
        ledger = self._ledger
        restored = await store.restore(
            self._job, spec, self.upto,
            ledger.bits if written else None, ledger.counts if written else None,
        )  # fmt: skip
        opened = zeros_below(restored.settled, self.upto.count)
        again = await withdrawn(store, self._job, spec.tier, opened, restored.dropped)
        return Begun(self.upto, self.held, self.read, again)
