"""Faults of the network, made by a proxy between the workers and Redis or an endpoint."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from chaoskit.faults.base import Fault

if TYPE_CHECKING:
    from chaoskit.plan import Fleet
    from chaoskit.rig import Rig

_PLACES = ("redis", "redis", "endpoint")


@dataclass(frozen=True, slots=True)
class _Wire(Fault):
    worker_codes: ClassVar[frozenset[int]] = frozenset({2})
    place: str

    @property
    def wire(self) -> str | None:
        return self.place


@dataclass(frozen=True, slots=True)
class WireReset(_Wire):
    """Every connection is reset, several times."""

    name: ClassVar[str] = "wire-reset"
    times: int

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.choice(_PLACES), dice.randint(1, 4))

    async def strike(self, rig: Rig) -> None:
        for _ in range(self.times):
            for proxy in rig.proxies(self.place):
                proxy.reset()
            await asyncio.sleep(0.4)


@dataclass(frozen=True, slots=True)
class WireDelay(_Wire):
    """Everything takes longer, each way."""

    name: ClassVar[str] = "wire-delay"
    by_s: float
    for_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.choice(_PLACES), dice.uniform(0.02, 0.4), dice.uniform(1.0, 4.0))

    async def strike(self, rig: Rig) -> None:
        for proxy in rig.proxies(self.place):
            proxy.delay_s = self.by_s
        await asyncio.sleep(self.for_s)
        for proxy in rig.proxies(self.place):
            proxy.delay_s = 0.0


@dataclass(frozen=True, slots=True)
class WireSlow(_Wire):
    """Little bandwidth for each connection."""

    name: ClassVar[str] = "wire-slow"
    asks_twice: ClassVar[bool] = True
    bytes_per_s: int
    for_s: float

    @property
    def may_ask_twice(self) -> bool:
        # Renewals queue behind large documents, and come too late.
        return self.place == "redis"

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        rate = dice.choice((20_000, 100_000, 500_000))
        return cls(dice.choice(_PLACES), rate, dice.uniform(1.0, 4.0))

    async def strike(self, rig: Rig) -> None:
        for proxy in rig.proxies(self.place):
            proxy.bytes_per_s = self.bytes_per_s
        await asyncio.sleep(self.for_s)
        for proxy in rig.proxies(self.place):
            proxy.bytes_per_s = None


@dataclass(frozen=True, slots=True)
class WireHole(_Wire):
    """Nothing gets through for a while; then it does again, or every connection is reset."""

    name: ClassVar[str] = "wire-hole"
    asks_twice: ClassVar[bool] = True
    for_s: float
    resets: bool

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.choice(_PLACES), dice.choice((0.5, 2.0, 5.0)), dice.random() < 0.5)

    async def strike(self, rig: Rig) -> None:
        for proxy in rig.proxies(self.place):
            proxy.open.clear()
        await asyncio.sleep(self.for_s)
        for proxy in rig.proxies(self.place):
            if self.resets:
                proxy.reset()
            proxy.open.set()
