"""What was decided, from what, and what is worth remembering of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["ramp", "refine", "hold"]


@dataclass(frozen=True, slots=True)
class Decision:
    """N from now on.

    Attributes:
        at: time of the observation, seconds.
        n: N from now on.
        before: N until now.
        phase: what the controller is doing.
        reason: why, in a few words.
        noted: whether this is worth a line in a log: N or the phase changed, or a test ended.
        inputs: the figures that it rests on, by name; seconds, tokens/s, shares from 0 to 1.
    """

    at: float
    n: int
    before: int
    phase: Phase
    reason: str
    noted: bool
    inputs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a later run may start from.

    Attributes:
        n: the N that was held.
        cliff: the smallest N known to be too large; None if none is.
        mean_tokens: mean tokens of a reply.
        phase: what the controller was doing.
        prompt_tokens: mean tokens of a prompt; None where the server does not tell.
    """

    n: int
    cliff: int | None = None
    mean_tokens: float | None = None
    phase: Phase = "hold"
    prompt_tokens: float | None = None
