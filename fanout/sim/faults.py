"""What goes wrong at a server, at given rates."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fanout.errors import UsageError

#: In the order in which they are drawn: a request meets at most one.
KINDS = {
    "error": "an error status at once",
    "hang": "no reply, however long the client waits",
    "reset": "the connection is reset when the reply is due, before a byte of it",
    "broken": "the connection is reset half way through the body",
    "cut": "the body ends half way, in good order: cut JSON, or a stream without its end",
    "null": "content null with finish_reason stop",
    "inside": "status 200 with an error object in place of an answer",
    "huge": "the answer, and 20 MB of white space behind it",
}
#: Characters that `huge` adds.
HUGE = 20_000_000


@dataclass(frozen=True, slots=True)
class Faults:
    """Rates of faults, and when the whole server is out.

    Args:
        rates: share of the requests, 0 to 1, by kind (`KINDS`).
        status: of `error`.
        outages: (start, length) in wall seconds since the server's start: 503 to everything.

    Raises:
        UsageError: a kind that there is not, rates beyond 1, or a status that is no error.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    status: int = 500
    outages: Sequence[tuple[float, float]] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.rates) - set(KINDS):
            raise UsageError(f"no fault {', '.join(sorted(unknown))}: {', '.join(KINDS)}")
        if min([0.0, *self.rates.values()]) < 0 or sum(self.rates.values()) > 1:
            raise UsageError("rates of faults are shares from 0 to 1, of 1 at most together")
        if not 400 <= self.status <= 599:
            raise UsageError(f"{self.status} is no error status")

    @classmethod
    def told(cls, body: Mapping[str, Any], since_start_s: float) -> Faults:
        """What the body of `POST /faults` asks for.

        Args:
            body: `rates` and `status` as above; `out_s`: answer 503 for so many seconds from now.
            since_start_s: wall seconds since the server's start.

        Raises:
            UsageError: as the constructor, or for values of another type.
        """
        try:
            rates = {str(kind): float(rate) for kind, rate in dict(body.get("rates", {})).items()}
            status, out_s = int(body.get("status", 500)), float(body.get("out_s", 0.0))
        except (TypeError, ValueError) as error:
            raise UsageError(f"faults: {error}") from None
        return cls(rates, status, ((since_start_s, out_s),) if out_s > 0 else ())

    def draw(self, dice: random.Random) -> str | None:
        """The fault that one request meets."""
        if not self.rates:
            return None
        left = dice.random()
        for kind in KINDS:
            left -= self.rates.get(kind, 0.0)
            if left < 0:
                return kind
        return None

    def out(self, since_start_s: float) -> bool:
        """Whether the server is out at this time."""
        return any(start <= since_start_s < start + length for start, length in self.outages)
