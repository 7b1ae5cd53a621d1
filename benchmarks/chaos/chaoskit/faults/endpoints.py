"""Faults of the model servers."""

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

#: Faults of single requests, and the kinds with which an item may end that meets too many.
_FAULTY = {
    "error": "server",
    "reset": "connect",
    "broken": "server",
    "cut": "server",
    "null": "empty",
    "inside": "server",
}


@dataclass(frozen=True, slots=True)
class EndpointDown(Fault):
    """The server ends, by SIGTERM or SIGKILL, refuses for a while, and listens again."""

    name: ClassVar[str] = "endpoint-down"
    server: int
    number: signal.Signals
    back_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        number = dice.choice((signal.SIGTERM, signal.SIGKILL))
        return cls(dice.randrange(len(fleet.servers)), number, dice.uniform(0.1, 4.0))

    async def strike(self, rig: Rig) -> None:
        await rig.servers[self.server].restart(self.number, self.back_s)


@dataclass(frozen=True, slots=True)
class EndpointHangs(Fault):
    """The server answers nothing for a while (SIGSTOP), and then goes on."""

    name: ClassVar[str] = "endpoint-hangs"
    server: int
    for_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.randrange(len(fleet.servers)), dice.choice((0.5, 3.0, 7.0)))

    async def strike(self, rig: Rig) -> None:
        await rig.servers[self.server].process.suspend(self.for_s)


@dataclass(frozen=True, slots=True)
class EndpointOut(Fault):
    """503 to every request for a while."""

    name: ClassVar[str] = "endpoint-out"
    server: int
    for_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.randrange(len(fleet.servers)), dice.uniform(0.3, 4.0))

    async def strike(self, rig: Rig) -> None:
        await rig.servers[self.server].go_wrong({"out_s": self.for_s})
        await asyncio.sleep(self.for_s)


@dataclass(frozen=True, slots=True)
class EndpointFaulty(Fault):
    """A share of the requests fails in one way for a while."""

    name: ClassVar[str] = "endpoint-faulty"
    fails: ClassVar[frozenset[str]] = frozenset(_FAULTY.values()) - {"connect"}
    server: int
    how: str
    rate: float
    for_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(
            dice.randrange(len(fleet.servers)),
            dice.choice(tuple(_FAULTY)),
            dice.choice((0.1, 0.5, 1.0)),
            dice.uniform(0.5, 3.0),
        )

    async def strike(self, rig: Rig) -> None:
        await rig.servers[self.server].go_wrong({"rates": {self.how: self.rate}})
        await asyncio.sleep(self.for_s)
        await rig.servers[self.server].go_wrong({})


@dataclass(frozen=True, slots=True)
class HugeReply(Fault):
    """Replies of 20 MB, for a moment."""

    name: ClassVar[str] = "huge-reply"
    once: ClassVar[bool] = True
    server: int

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.randrange(len(fleet.servers)))

    async def strike(self, rig: Rig) -> None:
        await rig.servers[self.server].go_wrong({"rates": {"huge": 0.05}})
        await asyncio.sleep(1.0)
        await rig.servers[self.server].go_wrong({})
