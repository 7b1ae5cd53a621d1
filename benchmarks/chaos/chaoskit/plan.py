"""From a seed to a schedule: a fleet, a job, and faults at moments. Pure: no clock, no files."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from chaoskit.faults import FAULTS, Fault

#: A schedule without faults takes about so many seconds of requests.
_SHORTEST_S, _LONGEST_S = 3.0, 8.0


@dataclass(frozen=True, slots=True)
class Server:
    """One simulated endpoint: its name, N, and the options that say how long requests take."""

    name: str
    n: int
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fleet:
    """What runs, and what it works on.

    Attributes:
        workers: worker processes.
        servers: endpoints of the one tier.
        items: documents of the job.
        text_chars: characters of a document: from, to.
        appendfsync: when Redis syncs its file: always or everysec.
        redeliver_after_s: silence after which a worker's items go to others.
        window: of the client; None: its own choice.
    """

    workers: int
    servers: tuple[Server, ...]
    items: int
    text_chars: tuple[int, int]
    appendfsync: str
    redeliver_after_s: float
    window: int | None

    @property
    def n(self) -> int:
        """N of all endpoints together."""
        return sum(server.n for server in self.servers)


@dataclass(frozen=True, slots=True)
class Event:
    """A fault and its moment: when a share of the records is written, and a while after."""

    share: float
    delay_s: float
    fault: Fault


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a schedule does; equal seeds give equal plans."""

    seed: int
    fleet: Fleet
    events: tuple[Event, ...]

    def lines(self) -> list[str]:
        """The plan for a person."""
        fleet = self.fleet
        servers = ", ".join(f"{s.name} N={s.n} {' '.join(s.options)}" for s in fleet.servers)
        head = (
            f"seed {self.seed}: {fleet.items} items of {fleet.text_chars[0]}-{fleet.text_chars[1]} "
            f"characters, {fleet.workers} workers, {servers}; appendfsync {fleet.appendfsync}, "
            f"redelivery after {fleet.redeliver_after_s:g} s, window {fleet.window or 'auto'}"
        )
        return [head, *(f"  at {e.share:.0%} + {e.delay_s:.1f} s  {e.fault}" for e in self.events)]


def make_plan(seed: int, only: Collection[str] = ()) -> Plan:
    """The schedule of a seed.

    Args:
        seed: of everything drawn.
        only: names of faults to draw from; all when empty.

    Raises:
        KeyError: there is no such fault.
    """
    dice = random.Random(f"chaos {seed}")
    fleet = _fleet(dice)
    names = [FAULTS[name].name for name in only] or list(FAULTS)
    kinds = [FAULTS[name] for name in names if FAULTS[name].fits(fleet)]
    count = min(dice.choice((1, 1, 2, 2, 3, 4, 5)), 8)
    events: list[Event] = []
    while kinds and len(events) < count:
        kind = dice.choice(kinds)
        share, delay = dice.uniform(0.0, 0.85), dice.uniform(0.0, 1.0)
        if events and dice.random() < 0.4:  # on top of the one before, or in its aftermath
            share, delay = events[-1].share, events[-1].delay_s + dice.uniform(0.0, 4.0)
        events.append(Event(share, delay, kind.draw(dice, fleet)))
        if kind.once:
            kinds.remove(kind)
    return Plan(seed, fleet, tuple(sorted(events, key=lambda e: (e.share, e.delay_s))))


def _fleet(dice: random.Random) -> Fleet:
    servers, per_s = [], 0.0
    flood = dice.random() < 0.08
    for name in ("one", "two")[: dice.choice((1, 1, 2))]:
        n = dice.randint(16, 48) if flood else dice.choice((2, 3, 4, 8, 12, 16, 24))
        mean_s = dice.uniform(0.01, 0.05) if flood else dice.uniform(0.15, 1.2)
        servers.append(Server(name, n, _times(dice, mean_s)))
        per_s += n / mean_s
    if flood:
        items = dice.randint(1000, 2500)
    else:
        items = round(min(per_s, 60.0) * dice.uniform(_SHORTEST_S, _LONGEST_S))
    long = dice.random() < 0.06
    return Fleet(
        workers=dice.choice((1, 2, 2, 3)),
        servers=tuple(servers),
        items=max(items, 12),
        text_chars=(20_000, 200_000) if long and not flood else (10, dice.choice((50, 500, 3000))),
        appendfsync=dice.choice(("always", "everysec")),
        redeliver_after_s=dice.choice((3.0, 3.0, 4.0, 6.0)),
        window=dice.choice((None, None, None, 5, 64)),
    )


def _times(dice: random.Random, mean_s: float) -> tuple[str, ...]:
    lengths = ("--output-lengths", dice.choice(("40", "lognormal:40,0.6", "exponential:60")))
    spread = (
        f"{mean_s:.3f}",
        f"lognormal:{mean_s:.3f},0.5",
        f"uniform:0.01,{2 * mean_s:.3f}",
        f"exponential:{mean_s:.3f}",
    )
    kind: Any = dice.choice((*spread, None))
    if kind is None:  # a published curve: all decode at one rate, which falls with their number
        return ("--model", "moe", "--speed", f"{3.0 / mean_s:.1f}", *lengths)
    return ("--seconds", kind, *lengths)
