"""Faults of the command that collects, and commands beside it."""

from __future__ import annotations

import asyncio
import random
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from chaoskit.faults.base import Fault

if TYPE_CHECKING:
    from chaoskit.plan import Fleet
    from chaoskit.rig import Rig


@dataclass(frozen=True, slots=True)
class KillClient(Fault):
    """SIGKILL to the command; the same command is given again."""

    name: ClassVar[str] = "kill-client"
    asks_twice: ClassVar[bool] = True

    async def strike(self, rig: Rig) -> None:
        rig.client.send(signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class TermClient(Fault):
    """SIGTERM to the command; the same command is given again."""

    name: ClassVar[str] = "term-client"

    async def strike(self, rig: Rig) -> None:
        rig.client.send(signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class StopClient(Fault):
    """SIGSTOP to the command for a while."""

    name: ClassVar[str] = "stop-client"
    for_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.choice((0.5, 2.0, 6.0)))

    async def strike(self, rig: Rig) -> None:
        await rig.client.suspend(self.for_s)


@dataclass(frozen=True, slots=True)
class DiskFull(Fault):
    """The command's files cannot grow any more; a new process finds room again."""

    name: ClassVar[str] = "disk-full"

    async def strike(self, rig: Rig) -> None:
        rig.client.limit_files(rig.output.stat().st_size + 100 if rig.output.exists() else 0)


@dataclass(frozen=True, slots=True)
class ReadOnlyOutput(Fault):
    """Nobody may write the output for a while, not even root; then one may again."""

    name: ClassVar[str] = "read-only-output"
    for_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.uniform(0.5, 4.0))

    async def strike(self, rig: Rig) -> None:
        await rig.lock_output(self.for_s)


@dataclass(frozen=True, slots=True)
class SecondJob(Fault):
    """Another command with a job of its own, through the same workers."""

    name: ClassVar[str] = "second-job"
    once: ClassVar[bool] = True
    items: int

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.randint(5, max(6, fleet.items // 3)))

    async def strike(self, rig: Rig) -> None:
        rig.start_second(self.items)


@dataclass(frozen=True, slots=True)
class CancelSecondJob(Fault):
    """Another job, and `fanout cancel` of it."""

    name: ClassVar[str] = "cancel-second-job"
    once: ClassVar[bool] = True
    fails: ClassVar[frozenset[str]] = frozenset({"cancelled"})
    items: int
    after_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.randint(5, max(6, fleet.items // 3)), dice.uniform(0.5, 4.0))

    async def strike(self, rig: Rig) -> None:
        job = rig.start_second(self.items, cancelled=True)
        await asyncio.sleep(self.after_s)
        await rig.cancel(job)
