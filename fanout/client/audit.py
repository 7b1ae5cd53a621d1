"""Whether an output holds exactly one record for everything that was submitted."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from fanout.client.documents import Doc
from fanout.client.feeder import BATCH
from fanout.client.ledger import Ledger
from fanout.client.source import Source
from fanout.inputs.ids import Ids
from fanout.outputs import OutputError, read_records
from fanout.outputs.documents import read_document
from fanout.outputs.opening import JSON_LINES
from fanout.outputs.parquet import journal_of
from fanout.store import Checkpoint
from fanout.store.bits import zeros_below
from fanout.wire import STATUSES, Item, Record, sha256_of

#: Examples of each trouble that are named.
_NAMED = 5


@dataclass(slots=True)
class Trouble:
    """One kind of trouble: how often, and the first few places."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: object) -> None:
        """Count one."""
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(str(place))


class Audit:
    """Compares an output with what is known of its job; 32 bytes an id at most.

    Args:
        output: what a command wrote.
        document: it is one document, and no file of records.
        elsewhere: records that are in another output, and do not count as missing.
    """

    def __init__(
        self, output: str, elsewhere: Ledger | None = None, *, document: bool = False
    ) -> None:
        self.output = output
        self._read = read_document if document else read_records
        self.records = 0
        #: Records that are in another output.
        self.elsewhere = elsewhere.counts.total() if elsewhere else 0
        self.counts: Counter[str] = Counter(elsewhere.counts if elsewhere else ())
        self.troubles: dict[str, Trouble] = {}
        #: Where the submitted number and the counts come from.
        self.judge = ""
        self.submitted = 0
        #: Documents of the input that were compared; None = it was not read.
        self.compared: int | None = None
        #: Documents of the input that the job never came to, or that were added since.
        self.unsubmitted = 0
        self._ledger = elsewhere or Ledger()
        self._ids = array("Q")
        self._hashes = array("Q")

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.troubles

    def look(self) -> None:
        """Read the output."""
        seen = Ids()
        gathered = journal_of(self.output)
        for path in (self.output, gathered):
            if path.endswith(JSON_LINES) and os.path.exists(path) and _is_torn(path):
                self.note("torn last line", path)
        if os.path.exists(gathered):
            self.note("not complete", gathered)
        try:
            for record in self._read(self.output):
                self._take(record, seen)
        except OutputError as error:
            self.note("unreadable", error)

    def _take(self, record: Mapping[str, Any], seen: Ids) -> None:
        self.records += 1
        identity, ordinal, status = str(record.get("id")), record.get("ordinal"), record["status"]
        self.counts[status] += 1
        if not seen.claim(identity):
            self.note("id twice", identity)
        if not isinstance(ordinal, int):
            self.note("no ordinal", identity)
        elif not self._ledger.add(ordinal, status):
            self.note("twice", identity)
        else:
            while len(self._ids) <= ordinal:
                self._ids.append(0)
                self._hashes.append(0)
            self._ids[ordinal] = _hash(identity)
            self._hashes[ordinal] = _prefix(record.get("input_sha256"))

    def agree(self, judge: str, counts: Mapping[str, int], submitted: int) -> None:
        """Compare with a ledger: `counts` by status of `submitted` items."""
        self.judge, self.submitted = judge, submitted
        for ordinal in sorted(zeros_below(self._ledger.bits, submitted)):
            self.note("missing", f"ordinal {ordinal}")
        beyond = max(0, len(self._ids) - submitted)
        for ordinal in range(len(self._ids) - beyond, len(self._ids)):
            if ordinal in self._ledger:
                self.note("never submitted", f"ordinal {ordinal}")
        for status in STATUSES:
            told, found = counts.get(status, 0), self.counts[status]
            if told != found:
                self.note("other counts", f"{found:,} {status}, {told:,} in {judge}")

    def waits(self, opened: int) -> None:
        """Note what the job has not come to."""
        if opened > 0:
            self.troubles["not ended"] = Trouble(opened)

    def kept(self, records: Iterable[Record]) -> None:
        """Note what Redis still holds of the job and the output does not.

        What the output has as well is no trouble: a Redis that has lost its last seconds holds
        records again that were written and removed.
        """
        for record in records:
            if record.ordinal is None or record.ordinal not in self._ledger:
                self.note("not written", record.id)

    async def compare(self, docs: Iterable[Doc], checkpoint: Checkpoint) -> None:
        """Compare with the input, by the ids and hashes of its documents and by its digest.

        What comes after the documents that were submitted is counted, and no trouble.
        """
        source = Source(docs, "", "", [checkpoint.count])
        self.compared = 0
        while (piece := await source.piece(BATCH)) is not None:
            for entry in piece.entries:
                self.compared += 1
                ordinal = entry.ordinal or 0
                if ordinal >= len(self._ids) or not self._ids[ordinal]:
                    continue  # missing, or not submitted yet
                if self._ids[ordinal] != _hash(entry.id):
                    self.note("another document", f"{entry.id} (ordinal {ordinal})")
                elif isinstance(entry, Item) and self._hashes[ordinal] not in (
                    0,
                    _prefix(sha256_of(entry.payload)),
                ):
                    self.note("another document", entry.id)
        found = source.digests.get(checkpoint.count)
        self.unsubmitted = max(0, self.compared - checkpoint.count)
        if self.compared < checkpoint.count:
            self.note("input shorter", f"{self.compared:,} documents")
        elif checkpoint.digest and found != checkpoint.digest:
            self.note("another input", f"the first {checkpoint.count:,} documents")

    def note(self, trouble: str, place: object) -> None:
        """Note a trouble at a place."""
        self.troubles.setdefault(trouble, Trouble()).add(place)


def _is_torn(path: str) -> bool:
    with open(path, "rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _hash(identity: str) -> int:
    digest = blake2b(identity.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _prefix(sha256: str | None) -> int:
    return int(sha256[:16], 16) if sha256 else 0
