"""The work of a command, as one job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fanout.cli.console import note, plain
from fanout.client import Doc
from fanout.inputs import BadRow
from fanout.stall.action import WAIT, OnStall

#: Rows that could not be read are named one by one up to here; all are in the output.
_NAMED_ROWS = 20


@dataclass(frozen=True, slots=True)
class Work:
    """One job as a command starts it.

    Attributes:
        kind: name of the task kind.
        docs: what to work on, or a function that opens it.
        params: the task kind's parameters.
        tier: the tier that serves it; None = the only one.
        total: number of documents, if it is cheap to know.
        window: items submitted ahead; None = by the tier's N.
        results: also keep records in Celery's result backend.
        quiet: show no progress.
        bar: show a moving bar; not beside data that goes to the same terminal.
        on_stall: what to do when no record comes for too long.
        inputs: the input's paths, as they were named.
        reading: how they are read, for who reads them again.
        resume: id of the job to go on with; None = the output's, or a new one.
        accept_changes: go on with what has changed, for what has no record yet.
    """

    kind: str
    docs: Iterable[Doc] | Callable[[], Iterable[Doc]]
    params: dict[str, Any]
    tier: str | None = None
    total: int | None = None
    window: int | None = None
    results: bool = False
    quiet: bool = False
    bar: bool = True
    on_stall: OnStall = WAIT
    inputs: Sequence[str] = ()
    reading: Mapping[str, Any] = field(default_factory=dict)
    resume: str | None = None
    accept_changes: bool = False

    def opened(self) -> Iterable[Doc]:
        """The documents from the first."""
        return self.docs() if callable(self.docs) else self.docs

    def told_of_bad_rows(self) -> Iterable[Doc]:
        """The documents from the first; rows that cannot be read are named on the way."""
        bad = 0
        for doc in self.opened():
            if isinstance(doc, BadRow) and not self.quiet:
                bad += 1
                if bad <= _NAMED_ROWS:
                    note(f"skipped {plain(doc.source)}: {plain(doc.reason, 200)}")
                elif bad == _NAMED_ROWS + 1:
                    note("more skipped rows follow; all of them are in the output")
            yield doc
