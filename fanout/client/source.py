"""A job's input: documents with their ordinals, in pieces, and the digest of all so far."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, cast

from fanout.client.documents import Doc, payload_of
from fanout.inputs import BadRow
from fanout.store import Checkpoint
from fanout.wire import ErrorInfo, Item, Record, Timing, canonical

_T = TypeVar("_T")

#: A document of more, as JSON, is skipped: its message in Base64 would be more than a worker takes.
MOST_BYTES = 32 * 2**20
#: A piece of so many bytes is enough: all of it goes to Redis in one call.
PIECE_BYTES = 8 * 2**20

#: What a document becomes: an item to submit, or the record of a row that cannot be read.
Entry = Item | Record


@dataclass(frozen=True, slots=True)
class Piece:
    """Entries in the order of their ordinals; `upto` is how far the input has been read then."""

    entries: list[Entry]
    upto: Checkpoint


class Source:
    """Reads documents once, numbers them, and digests them.

    The digest of n documents is the SHA-256 of their ids and payloads, one after the other; of a
    row that cannot be read, of its id and what is kept of it.

    Args:
        docs: read lazily; a plain iterable in a thread.
        job: the job's id.
        tier: goes into the records of rows that cannot be read.
        marks: numbers of documents at which the digest shall be remembered.
    """

    def __init__(
        self,
        docs: Iterable[Doc] | AsyncIterable[Doc],
        job: str,
        tier: str,
        marks: Collection[int] = (),
    ) -> None:
        self._docs = aiter(docs) if isinstance(docs, AsyncIterable) else iter(docs)
        self._job = job
        self._tier = tier
        self._marks = frozenset(marks)
        self._sha = hashlib.sha256()
        self._count = 0
        self._bytes = 0
        #: Digest by number of documents, for those of `marks` that have been reached.
        self.digests: dict[int, str] = {0: self._sha.hexdigest()} if 0 in self._marks else {}

    async def piece(self, size: int) -> Piece | None:
        """The next `size` entries, or fewer at the end or of large ones; None for no more."""
        documents = self._docs
        if isinstance(documents, AsyncIterator):
            entries = await self._gathered(documents, size)
        else:
            # Reading files blocks, and the collector runs on this loop.
            entries = await in_thread(lambda: self._read(documents, size))
        return Piece(entries, Checkpoint(self._count, self._sha.hexdigest())) if entries else None

    def _read(self, documents: Iterator[Doc], size: int) -> list[Entry]:
        entries: list[Entry] = []
        enough = self._bytes + PIECE_BYTES
        for doc in itertools.islice(documents, size):
            entries.append(self._entry_of(doc))
            if self._bytes >= enough:
                break
        return entries

    async def _gathered(self, documents: AsyncIterator[Doc], size: int) -> list[Entry]:
        entries: list[Entry] = []
        enough = self._bytes + PIECE_BYTES
        while len(entries) < size and self._bytes < enough:
            try:
                entries.append(self._entry_of(await anext(documents)))
            except StopAsyncIteration:
                break
        return entries

    def _entry_of(self, doc: Doc) -> Entry:
        ordinal = self._count
        entry: Entry
        if isinstance(doc, BadRow):
            self._sha.update(canonical([doc.id, None, doc.raw]))
            entry = self._skipped(doc.id, f"{doc.source}: {doc.reason}", doc.raw or None)
        else:
            identity, payload = payload_of(doc, ordinal)
            written = canonical([identity, payload])
            self._sha.update(written)
            self._bytes += len(written)
            if len(written) > MOST_BYTES:
                entry = self._skipped(identity, f"larger than {MOST_BYTES:,} bytes as JSON")
            else:
                entry = Item(id=identity, payload=payload, ordinal=ordinal, job=self._job)
        self._count += 1
        if self._count in self._marks:
            self.digests[self._count] = self._sha.hexdigest()
        return entry

    def _skipped(self, identity: str, message: str, raw: str | None = None) -> Record:
        return Record(
            id=identity,
            ordinal=self._count,
            status="skipped",
            error=ErrorInfo(kind="input", message=message, raw=raw),
            tier=self._tier,
            timing=Timing(finished_at=round(time.time(), 3)),
        )


async def in_thread(call: Callable[[], _T]) -> _T:
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
