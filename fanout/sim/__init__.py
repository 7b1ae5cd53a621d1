"""The Spark simulator: a model server's behaviour under load, without a model.

curves    what a server does at each number of running requests (`Profile`)
engine    queue, prefill, decoding and KV cache by those curves, without a clock (`Engine`)
"""

from fanout.sim.curves import PROFILES, Profile, load_profile
from fanout.sim.engine import Engine, Gauges, QueueFull, Sequence, State, Work

__all__ = [
    "PROFILES",
    "Engine",
    "Gauges",
    "Profile",
    "QueueFull",
    "Sequence",
    "State",
    "Work",
    "load_profile",
]
