"""Where a command's records go: an output with the job file beside it, or standard output."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, cast

from fanout.cli.writing import write
from fanout.client import Doc, Ledger, payload_of
from fanout.client.jobfile import Elsewhere, JobFile, path_of
from fanout.errors import UsageError
from fanout.inputs import BadRow
from fanout.inputs.ids import Ids
from fanout.outputs import OutputError, RecordWriter, check_output, open_output, read_records
from fanout.outputs.dropping import drop_records
from fanout.outputs.parquet import journal_of
from fanout.store import Checkpoint
from fanout.wire import Record


class Target:
    """An output that only this process writes, and what it holds already.

    Args:
        path: the output as the user named it; `-` is standard output.
        records: the file of records, where the output itself is another document.
        overwrite: begin anew, whatever is there.
        drop: statuses of records to take out of it, to be done again.

    Raises:
        UsageError: the output is there and is no unfinished job's, or cannot be written.
    """

    def __init__(
        self,
        path: str,
        *,
        records: str | None = None,
        overwrite: bool = False,
        drop: Collection[str] = (),
    ) -> None:
        self.path = path
        self.records = records or path
        #: The job that wrote what is there; None where nothing is, or where it is replaced.
        self.file: JobFile | None = None
        #: The job that is replaced.
        self.replaced: JobFile | None = None
        #: What it holds; None on standard output, which cannot be read back.
        self.ledger: Ledger | None = None if path == "-" else Ledger()
        if path == "-":
            self._writer: RecordWriter = open_output("-")
            return
        found = JobFile.load(path)
        if overwrite:
            self.replaced = found
            # First: a job file must not be found beside an output that is not its.
            path_of(path).unlink(missing_ok=True)
        elif found is not None and self._is_there():
            self.file = found
        elif os.path.exists(path) and os.path.getsize(path):
            raise UsageError(f"{path} exists already: --overwrite replaces it")
        # What a job of which nothing else is left may have gathered is in nobody's way.
        replaces = overwrite or (self.file is None and self.records != path)
        is_empty = os.path.exists(self.records) and not os.path.getsize(self.records)
        continues = not replaces and (self.file is not None or is_empty)
        self._writer = open_output(self.records, append=continues, overwrite=replaces)
        try:
            if self.file is not None:
                if drop:
                    self._drop(drop)
                self.ledger = self._scanned(self.file)
        except BaseException:
            self._writer.release()
            raise

    def _is_there(self) -> bool:
        return os.path.exists(self.records) or os.path.exists(journal_of(self.records))

    def _drop(self, statuses: Collection[str]) -> None:
        assert self.file is not None  # noqa: S101 - the caller's
        # First: a crash on the way leaves a job that goes on and finds these without a record.
        self.file.state = "open"
        self.file.save(self.path)
        for part in (self.records, journal_of(self.records)):
            if os.path.exists(part):
                drop_records(part, lambda record: record["status"] in statuses)
        self._writer.release()
        self._writer = open_output(self.records, append=True)

    def _scanned(self, file: JobFile) -> Ledger:
        ledger = Ledger()
        if file.elsewhere is not None:
            ledger = Ledger(file.elsewhere.bitmap())
            ledger.counts.update(file.elsewhere.counts)
        for record in read_records(self.records):
            if record.get("ordinal") is None:
                raise UsageError(
                    f"{self.records} holds records without an ordinal, so it cannot be continued: "
                    "--overwrite replaces it"
                )
            if not ledger.add(record["ordinal"], record["status"]):
                raise OutputError(
                    f"{self.records} holds two records of ordinal {record['ordinal']}: "
                    "`fanout verify` tells more, --overwrite begins anew"
                )
        return ledger

    @property
    def where(self) -> str:
        """The output as others find it."""
        return self.path if self.path == "-" else os.path.abspath(self.path)

    @property
    def is_resumable(self) -> bool:
        """Whether the same command can go on later."""
        return self.path != "-"

    def begin(self, file: JobFile) -> None:
        """Put the job file of a new job beside the output."""
        file.document = self.records != self.path
        self.file = file
        file.save(self.path)

    def continue_elsewhere(self, file: JobFile, collected: Ledger) -> None:
        """Begin an output of a job whose records so far are in another one."""
        file.elsewhere = Elsewhere.of(collected.bits, collected.counts)
        self.ledger = collected
        self.begin(file)

    def write(self, batch: Sequence[Record], upto: Checkpoint) -> None:
        """Write a batch and return when it is on disk, with a checkpoint that covers it."""
        if self.file is not None and self.ledger is not None:
            last = max((record.ordinal or 0 for record in batch), default=0)
            if last >= self.file.documents:
                self.file.reached(upto, self.ledger.counts)
                self.file.save(self.path)
        write(self._writer, batch)

    def complete(self, upto: Checkpoint, *, cancelled: bool) -> None:
        """Close the output and say in the job file that it is complete."""
        self._writer.close()
        if self.file is None or self.ledger is None:
            return
        self.file.reached(max(upto, self.file.checkpoint, key=_count), self.ledger.counts)
        if self.records == self.path:
            self.file.state = "cancelled" if cancelled else "complete"
        self.file.save(self.path)

    def put(self, write_document: Callable[[], None]) -> None:
        """Put a document in the place of the records: written, then said, then they go."""
        write_document()
        if self.file is not None:
            self.file.state = "complete"
            self.file.save(self.path)
        if self.records != self.path:
            os.unlink(self.records)

    def release(self) -> None:
        """Let go of the output as it is, to be continued."""
        self._writer.release()

    def all_records(self) -> Iterator[Record]:
        """Every record that it holds."""
        for record in read_records(self.records):
            yield Record.model_validate(record)

    def distinct(self, docs: Iterable[Doc]) -> Iterator[Doc]:
        """The documents of an input that was changed; no id gets a second record.

        Raises:
            UsageError: a document without a record has the id of one that has; when it is reached.
        """
        assert self.ledger is not None  # noqa: S101 - only outputs are continued
        ids = Ids()
        for record in read_records(self.records):
            ids.claim(str(record["id"]))
        for ordinal, doc in enumerate(docs):
            if ordinal not in self.ledger and not ids.claim(_id_of(doc, ordinal)):
                raise UsageError(
                    f"{self.path} holds a record of the id {_id_of(doc, ordinal)!r} already, which "
                    f"document {ordinal + 1:,} has now: --overwrite begins anew"
                )
            yield doc


def _count(checkpoint: Checkpoint) -> int:
    return checkpoint.count


def finished(output: str, inputs: Sequence[str]) -> tuple[str, bool] | None:
    """What to say of an output that is complete, and whether all of it is ok; None if it is not.

    Only if its inputs look as they did: one that has grown is gone on with.
    """
    if output == "-" or not os.path.exists(output):
        return None
    file = JobFile.load(output)
    if file is None or file.state != "complete" or not file.inputs_are_as_they_were(inputs):
        return None
    total = sum(file.counts.values())
    by_status = ", ".join(f"{n:,} {status}" for status, n in file.counts.items())
    words = f"{output} is complete: job {file.job}, {total:,} records ({by_status or 'none'})"
    return words, file.counts.get("ok", 0) == total


def check_target(output: str, *, overwrite: bool) -> None:
    """Look whether `Target` would do, before anything is started; leaves nothing behind.

    Raises:
        UsageError: as `Target`, as far as a look can tell.
    """
    continues = output != "-" and JobFile.load(output) is not None
    empty = os.path.isfile(output) and not os.path.getsize(output)
    check_output(output, overwrite=overwrite or continues or empty)


def _id_of(doc: Doc, ordinal: int) -> str:
    return doc.id if isinstance(doc, BadRow) else payload_of(cast(Any, doc), ordinal)[0]
