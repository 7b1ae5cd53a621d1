"""What every fault is."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from chaoskit.plan import Fleet
    from chaoskit.rig import Rig


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong; its fields are what was drawn.

    Attributes:
        name: as in tables and on the command line.
        once: at most one of it in a schedule.
        fails: kinds of failure with which items may end because of it.
        asks_twice: whether the server may see requests of an item a second time because of it; at
            most what is in flight or has just been answered when it strikes.
        holds_on: whether workers go on with all that they hold while others are given it as well.
        wire: what has to go through a proxy for it: "redis" or "endpoint".
        loses_broker: whether connections to Redis break, or it refuses what it is asked.
        worker_codes: exit codes with which workers may end because of it, minus a signal's number.
        plug_in: whether the workers have to load the kit's own task kind for it.
    """

    name: ClassVar[str]
    once: ClassVar[bool] = False
    fails: ClassVar[frozenset[str]] = frozenset()
    asks_twice: ClassVar[bool] = False
    holds_on: ClassVar[bool] = False
    worker_codes: ClassVar[frozenset[int]] = frozenset()
    plug_in: ClassVar[bool] = False

    @property
    def wire(self) -> str | None:
        """What has to go through a proxy."""
        return None

    @property
    def may_ask_twice(self) -> bool:
        """Whether `asks_twice` holds for what was drawn."""
        return self.asks_twice

    @property
    def loses_broker(self) -> bool:
        """Whether connections to Redis break."""
        return self.wire == "redis"

    @classmethod
    def fits(cls, fleet: Fleet) -> bool:
        """Whether it can strike such a fleet."""
        return True

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        """One of its kind."""
        return cls()

    async def strike(self, rig: Rig) -> None:
        """Do it, and return when it is over."""
        raise NotImplementedError
