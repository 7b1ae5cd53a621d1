"""The stall watch: a job that gives no records says so, with the likeliest cause."""

from fanout.stall.sight import Cause, ServerSight, Sight, diagnose
from fanout.stall.watch import Stall, StallWatch

__all__ = ["Cause", "ServerSight", "Sight", "Stall", "StallWatch", "diagnose"]
