"""What is simulated, in one object."""

from __future__ import annotations

from dataclasses import dataclass, field

from fanout.sim.curves import MOE, Profile
from fanout.sim.faults import Faults
from fanout.sim.lengths import Distribution


@dataclass(frozen=True, slots=True)
class Options:
    """What is simulated.

    Args:
        profile: the model and its curve.
        speed: seconds of the simulated server in one second of the wall clock.
        seed: of every draw.
        noise: standard deviation of the server's speed, as a share of it.
        max_num_seqs: instead of the profile's.
        queue_limit: requests inside, running or waiting, beyond which it answers 503; instead of
            the profile's.
        lengths: output tokens of an answer, reasoning not counted; None: as many as a request's
            max_tokens allows.
        seconds: in place of the curve, each request takes a time drawn from this.
        effort: reasoning effort where a request names none; None: no reasoning then.
        faults: what goes wrong.
        slow_start_s: simulated seconds after the first request until it has its full speed.
        keep_alive_s: wall seconds after which an idle connection is closed.
        per_request_metrics: whether replies carry `metrics`.
    """

    profile: Profile = MOE
    speed: float = 1.0
    seed: int = 0
    noise: float = 0.0
    max_num_seqs: int | None = None
    queue_limit: int | None = None
    lengths: Distribution | None = None
    seconds: Distribution | None = None
    effort: str | None = None
    faults: Faults = field(default_factory=Faults)
    slow_start_s: float = 0.0
    keep_alive_s: float = 5.0
    per_request_metrics: bool = True
