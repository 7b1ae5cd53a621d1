"""Faults of worker processes."""

from __future__ import annotations

import asyncio
import random
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from chaoskit.faults.base import Fault
from chaoskit.plug_in import EXIT_POISON
from fanout.cli.exits import Exit

if TYPE_CHECKING:
    from chaoskit.plan import Fleet
    from chaoskit.rig import Rig

#: A lease lasts 10 s (`fanout_workers.leases.TTL_S`).
_PAST_LEASE_S = 11.5
#: A warm shutdown; or none at all, before the command, or after it Celery, takes the signal over.
_TOLD_TO_END = frozenset({0, -signal.SIGTERM, Exit.INTERRUPTED})


@dataclass(frozen=True, slots=True)
class KillWorker(Fault):
    """SIGKILL to a worker; the supervisor starts another."""

    name: ClassVar[str] = "kill-worker"
    worker_codes: ClassVar[frozenset[int]] = frozenset({-signal.SIGKILL})
    asks_twice: ClassVar[bool] = True
    which: int

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.randrange(fleet.workers))

    async def strike(self, rig: Rig) -> None:
        rig.worker(self.which).send(signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class TermWorker(Fault):
    """SIGTERM to a worker; the supervisor starts another."""

    name: ClassVar[str] = "term-worker"
    worker_codes: ClassVar[frozenset[int]] = _TOLD_TO_END
    which: int

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.randrange(fleet.workers))

    async def strike(self, rig: Rig) -> None:
        rig.worker(self.which).send(signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class StopWorker(Fault):
    """SIGSTOP to a worker for a while: some past its items' redelivery, some past its lease."""

    name: ClassVar[str] = "stop-worker"
    asks_twice: ClassVar[bool] = True
    holds_on: ClassVar[bool] = True
    which: int
    for_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        longest = dice.choice((1.0, fleet.redeliver_after_s + 1.5, _PAST_LEASE_S))
        return cls(dice.randrange(fleet.workers), longest)

    async def strike(self, rig: Rig) -> None:
        await rig.worker(self.which).suspend(self.for_s)


@dataclass(frozen=True, slots=True)
class WorkerJoins(Fault):
    """One more worker."""

    name: ClassVar[str] = "worker-joins"

    async def strike(self, rig: Rig) -> None:
        rig.add_worker()


@dataclass(frozen=True, slots=True)
class WorkerLeaves(Fault):
    """SIGTERM to a worker that nobody starts again."""

    name: ClassVar[str] = "worker-leaves"
    worker_codes: ClassVar[frozenset[int]] = _TOLD_TO_END
    once: ClassVar[bool] = True

    @classmethod
    def fits(cls, fleet: Fleet) -> bool:
        return fleet.workers > 1

    async def strike(self, rig: Rig) -> None:
        rig.worker(1).retire()


@dataclass(frozen=True, slots=True)
class ClockJump(Fault):
    """The wall clock of the workers jumps, as `time.time` shows it."""

    name: ClassVar[str] = "clock-jump"
    plug_in: ClassVar[bool] = True
    by_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.choice((-86_400.0, -3600.0, -5.0, 5.0, 3600.0, 86_400.0)))

    async def strike(self, rig: Rig) -> None:
        rig.set_clock(self.by_s)


@dataclass(frozen=True, slots=True)
class Poison(Fault):
    """A document that ends each worker which works on it; in the input from the start."""

    name: ClassVar[str] = "poison"
    worker_codes: ClassVar[frozenset[int]] = frozenset({EXIT_POISON})
    once: ClassVar[bool] = True
    plug_in: ClassVar[bool] = True
    asks_twice: ClassVar[bool] = True
    fails: ClassVar[frozenset[str]] = frozenset({"poison"})

    async def strike(self, rig: Rig) -> None:
        """Nothing: the document is there."""


@dataclass(frozen=True, slots=True)
class ChangeN(Fault):
    """N of an endpoint is changed by the command, and changed back after a while."""

    name: ClassVar[str] = "change-n"
    once: ClassVar[bool] = True
    server: int
    to: int
    for_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        which = dice.randrange(len(fleet.servers))
        n = fleet.servers[which].n
        to = dice.choice((max(1, n // 3), 2 * n))
        return cls(which, to, dice.uniform(1.0, 5.0))

    async def strike(self, rig: Rig) -> None:
        await rig.change_n(self.server, self.to)
        await asyncio.sleep(self.for_s)
        await rig.change_n(self.server, rig.plan.fleet.servers[self.server].n)
