"""What a server saw: requests in flight over time, how they ended, which came twice.

Pure accounting: every call says what time it is. A request is in flight from its head's arrival
until its reply is written or its client is gone.
"""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

#: Workers send `{item}-{try}`; a UUID's last group is longer than a number of tries.
_TRY = re.compile(r"-(\d{1,4})$")
_EXAMPLES = 20


def item_of(request_id: str) -> tuple[str, int]:
    """Item id and number of the try in a request id; the try is 0 where there is none."""
    if found := _TRY.search(request_id):
        return request_id[: found.start()], int(found[1])
    return request_id, 0


@dataclass(slots=True)
class _Item:
    in_flight: int = 0
    answered: bool = False
    last_try: int = -1


@dataclass(eq=False, slots=True)
class Visit:
    """One request in flight, until `Stats.ended`."""

    item: _Item | None
    hangs: bool = False


class Level:
    """A number over time, exactly: every change with the integral up to it."""

    def __init__(self, now: float, level: int = 0) -> None:
        self.level = level
        self.max = level
        self._times = array("d", [now])
        self._areas = array("d", [0.0])
        self._levels = array("l", [level])
        self._seconds_at: defaultdict[int, float] = defaultdict(float)

    def change(self, now: float, by: int) -> None:
        """Go up or down; `now` never goes back."""
        passed = now - self._times[-1]
        if passed:
            self._seconds_at[self.level] += passed
        self._times.append(now)
        self._areas.append(self._areas[-1] + passed * self.level)
        self.level += by
        self._levels.append(self.level)
        self.max = max(self.max, self.level)

    def area(self, at: float) -> float:
        """The integral from the beginning to `at`."""
        index = max(0, bisect_right(self._times, at) - 1)
        return self._areas[index] + max(0.0, at - self._times[index]) * self._levels[index]

    def mean(self, start: float, end: float) -> float:
        """The time-weighted mean; the level at `start` when no time passes."""
        if end <= start:
            return float(self._levels[max(0, bisect_right(self._times, start) - 1)])
        return (self.area(end) - self.area(start)) / (end - start)

    def peak(self, start: float, end: float) -> int:
        """The highest level at any moment from `start` to `end`."""
        first = max(0, bisect_right(self._times, start) - 1)
        return max(self._levels[first : max(first + 1, bisect_right(self._times, end))])

    def seconds_at(self, now: float) -> dict[int, float]:
        """Seconds spent at each level up to `now`."""
        seconds = dict(self._seconds_at)
        if now > self._times[-1]:
            seconds[self.level] = seconds.get(self.level, 0.0) + now - self._times[-1]
        return seconds


class Stats:
    """The referee's book.

    Attributes:
        level: requests in flight.
        requests: that came, those in flight at the last reset included.
        answered: whose whole reply was written.
        aborted: whose client left first.
        failed: the others by kind.
        retries: requests for an item of which every earlier one failed or was given up.
        asked_again: a new try of an item that had been answered: its client refused the answer.
        while_in_flight: requests for an item of which one was in flight.
        after_answer: requests for an item that had been answered, by a client that does not know:
            the number of the try is no new one.
        examples: ids of requests under the last two.
    """

    def __init__(self, now: float = 0.0) -> None:
        self._live: dict[Visit, None] = {}
        self._items: dict[str, _Item] = {}
        self.reset(now)

    def reset(self, now: float) -> None:
        """Begin anew; what is in flight stays so, and counts as having come now."""
        self.started_at = now
        self.level = Level(now, len(self._live))
        self.requests = len(self._live)
        self.answered = self.aborted = 0
        self.failed: Counter[str] = Counter()
        self.retries = self.asked_again = self.while_in_flight = self.after_answer = 0
        self.examples: list[str] = []
        self.marks: dict[str, float] = {}
        self._items = {name: item for name, item in self._items.items() if item.in_flight}
        self._answered_at = array("d")

    def arrived(self, now: float, request_id: str | None = None) -> Visit:
        """A request's head is here."""
        self.requests += 1
        self.level.change(now, +1)
        visit = Visit(None if request_id is None else self._item(request_id))
        self._live[visit] = None
        return visit

    def ended(self, now: float, visit: Visit, outcome: str) -> None:
        """It is no longer in flight; a second end of the same visit says nothing.

        Args:
            now: when.
            visit: which.
            outcome: `answered` when its whole reply has been written, `aborted` when its client
                left first; otherwise how the server refused or broke it.
        """
        if visit not in self._live:
            return
        del self._live[visit]
        self.level.change(now, -1)
        if visit.item is not None:
            visit.item.in_flight -= 1
        if outcome == "answered":
            self.answered += 1
            self._answered_at.append(now)
            if visit.item is not None:
                visit.item.answered = True
        elif visit.hangs:
            self.failed["hang"] += 1
        elif outcome == "aborted":
            self.aborted += 1
        else:
            self.failed[outcome] += 1

    def hung(self, visit: Visit) -> None:
        """It will get no reply: when its client leaves, that ends it as `hang`."""
        visit.hangs = True

    def mark(self, name: str, now: float) -> None:
        """Remember this moment under a name."""
        self.marks[name] = now - self.started_at

    def mean(self, start: float, end: float) -> float:
        """Mean in flight between two times, in seconds since the reset."""
        return self.level.mean(self.started_at + start, self.started_at + end)

    def peak(self, start: float, end: float) -> int:
        """Maximum in flight between two times, in seconds since the reset."""
        return self.level.peak(self.started_at + start, self.started_at + end)

    def window(self, low: float = 0.1, high: float = 0.9) -> tuple[float, float] | None:
        """When these shares of the answers had been given, in seconds since the reset."""
        count = len(self._answered_at)
        # Rounded first: 0.1 x 30 is a little more than 3 in binary.
        first, last = (math.ceil(round(share * count, 9)) for share in (low, high))
        if first < 1 or last <= first:
            return None
        at = self._answered_at
        return at[first - 1] - self.started_at, at[last - 1] - self.started_at

    def snapshot(self, now: float, points: int = 200) -> dict[str, Any]:
        """All of it as JSON; times in seconds since the reset."""
        passed = now - self.started_at
        window = self.window()
        seconds = self.level.seconds_at(now)
        return {
            "seconds": passed,
            "requests": self.requests,
            "answered": self.answered,
            "aborted": self.aborted,
            "failed": dict(self.failed),
            "retries": self.retries,
            "asked_again": self.asked_again,
            "duplicates": {
                "while_in_flight": self.while_in_flight,
                "after_answer": self.after_answer,
                "examples": self.examples,
            },
            "in_flight": {
                "now": self.level.level,
                "max": self.level.max,
                "mean": self.mean(0, passed),
                "mean_10_90": self.mean(*window) if window else None,
                "from_10_to_90_s": window,
                "seconds_at": {str(level): seconds[level] for level in sorted(seconds)},
                "curve": self.curve(0, passed, points),
            },
            "marks": self.marks,
        }

    def curve(self, start: float, end: float, points: int) -> list[tuple[float, float, int]]:
        """(end, mean, maximum) of in flight over that many equal intervals."""
        if end <= start or points < 1:
            return []
        edges = [start + (end - start) * n / points for n in range(points + 1)]
        return [(b, round(self.mean(a, b), 3), self.peak(a, b)) for a, b in pairwise(edges)]

    def _item(self, request_id: str) -> _Item:
        name, attempt = item_of(request_id)
        item = self._items.get(name)
        if item is None:
            item = self._items[name] = _Item()
        elif item.in_flight:
            self.while_in_flight += 1
            self._show(request_id)
        elif not item.answered:
            self.retries += 1
        elif attempt > item.last_try:
            self.asked_again += 1
        else:
            self.after_answer += 1
            self._show(request_id)
        item.in_flight += 1
        item.last_try = max(item.last_try, attempt)
        return item

    def _show(self, request_id: str) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append(request_id)
