"""Keeping ids unique over a run, at 12 to 24 bytes an id."""

from __future__ import annotations

from array import array
from hashlib import blake2b
from itertools import count


class HashSet:
    """A set of 64-bit integers in one array (open addressing, at most two thirds full).

    A built-in set of as many integers takes about five times the memory.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def add(self, value: int) -> bool:
        """Add a value; False if it was there."""
        value = value or 1  # 0 marks a free slot
        if not self._put(value):
            return False
        self._used += 1
        if 3 * self._used > 2 * len(self._slots):
            self._grow()
        return True

    def _put(self, value: int) -> bool:
        slots = self._slots
        mask = len(slots) - 1
        at = value & mask
        while found := slots[at]:
            if found == value:
                return False
            at = (at + 1) & mask
        slots[at] = value
        return True

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(8 * 2 * len(old)))
        for value in old:
            if value:
                self._put(value)


class Ids:
    """The ids given out so far, as 64-bit hashes.

    Two of a million different ids share a hash with a chance of 3 in 100 million; the second would
    come out as a bad row (a duplicate), not as a lost one.
    """

    def __init__(self) -> None:
        self._seen = HashSet()

    def claim(self, wanted: str) -> bool:
        """Take an id; False if it is taken."""
        digest = blake2b(wanted.encode(), digest_size=8).digest()
        return self._seen.add(int.from_bytes(digest, "little"))

    def fresh(self, wanted: str) -> str:
        """Take an id that we made ourselves, with `#2`, `#3`… appended where it is taken."""
        if self.claim(wanted):
            return wanted
        return next(name for n in count(2) if self.claim(name := f"{wanted}#{n}"))
