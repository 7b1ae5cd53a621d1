"""Distributions of lengths and durations, as a command line names them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from fanout.errors import UsageError

_ARGUMENTS = {"fixed": 1, "lognormal": 2, "uniform": 2, "exponential": 1}


@dataclass(frozen=True, slots=True)
class Distribution:
    """fixed:VALUE, lognormal:MEDIAN,SIGMA, uniform:LOW,HIGH or exponential:MEAN; a number is fixed.

    Args:
        kind: one of these.
        arguments: its parameters; SIGMA is the standard deviation of the logarithm.
    """

    kind: str
    arguments: tuple[float, ...]

    def draw(self, dice: random.Random) -> float:
        """One value, from 0 up."""
        match self.kind:
            case "lognormal":
                return self.arguments[0] * math.exp(self.arguments[1] * dice.gauss())
            case "uniform":
                return dice.uniform(*self.arguments)
            case "exponential":
                return -self.arguments[0] * math.log(1.0 - dice.random())
            case _:
                return self.arguments[0]

    def mean(self) -> float:
        """The expected value."""
        match self.kind:
            case "lognormal":
                return self.arguments[0] * math.exp(self.arguments[1] ** 2 / 2)
            case "uniform":
                return sum(self.arguments) / 2
            case _:
                return self.arguments[0]


def parse_distribution(text: str) -> Distribution:
    """The distribution that the text names.

    Raises:
        UsageError: it names none, or with impossible parameters.
    """
    kind, _, rest = text.rpartition(":")
    kind = kind or "fixed"
    try:
        arguments = tuple(float(part) for part in rest.split(","))
    except ValueError:
        arguments = ()
    fits = len(arguments) == _ARGUMENTS.get(kind) and all(0 <= a < math.inf for a in arguments)
    if not fits or (kind == "uniform" and arguments[0] > arguments[1]):
        raise UsageError(
            f"{text!r} is no distribution: a number, lognormal:MEDIAN,SIGMA, uniform:LOW,HIGH or "
            "exponential:MEAN"
        )
    return Distribution(kind, arguments)
