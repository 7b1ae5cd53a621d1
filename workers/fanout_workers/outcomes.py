"""What a worker says of the items that end: a line for each that went wrong, a sum for the rest."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from fanout import Record

log = logging.getLogger(__name__)

#: Seconds between two sums.
EVERY_S = 10.0


class Outcomes:
    """Counts items by how they end, and logs the sums; for one event loop."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, job: str | None, record: Record) -> None:
        """Count an item that has ended."""
        if not self._counts:
            asyncio.get_running_loop().call_later(EVERY_S, self._tell)
        self._counts[record.status] += 1
        # A line an item costs as much as its validation, and nobody reads thousands a second.
        level = logging.DEBUG if record.status == "ok" else logging.INFO
        if log.isEnabledFor(level):
            # Ids and figures: what a document or a reply says does not belong into a log.
            log.log(
                level,
                "item %r of job %s: %s%s in %.1f s",
                record.id[:80],
                job,
                record.status,
                f" ({record.error.kind})" if record.error else "",
                record.timing.total_s or 0.0,
            )

    def _tell(self) -> None:
        told = ", ".join(f"{count} {status}" for status, count in self._counts.items())
        log.info("items ended in the last %.0f s: %s", EVERY_S, told)
        self._counts.clear()
