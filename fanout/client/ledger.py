"""Which records a collector has, by ordinal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fanout.store.bits import has_bit, set_bit
from fanout.wire import Record


class Ledger:
    """The ordinals whose records are safe in the output, and how many have which status.

    A bit an ordinal: a million records take 125 KB.

    Args:
        bits: ordinals known from the start, as `fanout.store.bits` has them; not in the counts.
    """

    def __init__(self, bits: bytes = b"") -> None:
        self._bits = bytearray(bits)
        self.counts: Counter[str] = Counter()

    def __contains__(self, ordinal: object) -> bool:
        return isinstance(ordinal, int) and has_bit(self._bits, ordinal)

    def add(self, ordinal: int | None, status: str) -> bool:
        """Take a record in; False if there was one of that ordinal.

        A record without an ordinal (an older worker's) cannot be recognised, and is always new.
        """
        if ordinal is not None:
            if has_bit(self._bits, ordinal):
                return False
            set_bit(self._bits, ordinal)
        self.counts[status] += 1
        return True

    def discard(self, ordinal: int) -> bool:
        """Take an ordinal out; False if it was not here. The counts stay."""
        if not has_bit(self._bits, ordinal):
            return False
        self._bits[ordinal >> 3] &= ~(128 >> (ordinal & 7))
        return True

    def new_of(self, records: Sequence[Record]) -> Sequence[Record]:
        """Those of the records that are not here yet, each ordinal once; nothing is taken in.

        Where all are new these are `records` themselves, and what came with them is kept.
        """
        found: list[Record] = []
        seen: set[int] = set()
        for record in records:
            if record.ordinal is not None:
                if record.ordinal in self or record.ordinal in seen:
                    continue
                seen.add(record.ordinal)
            found.append(record)
        return records if len(found) == len(records) else found

    @property
    def bits(self) -> bytes:
        """The bitmap as it is now."""
        return bytes(self._bits)

    @property
    def clean(self) -> bool:
        """Whether every record taken in is ok."""
        return self.counts["ok"] == self.counts.total()
