"""Finding and holding N: the decisions, without I/O, clock or asyncio.

`Controller` is told once a poll what the workers and the server show, and answers with N and a
reason. Who polls and who carries N to the workers is `fanout_workers.leader`.
"""

from fanout_workers.auto.decision import Decision, Remembered
from fanout_workers.auto.observe import Gauges, Observation, Streams, pace_s
from fanout_workers.auto.rbrh import Bounds, Controller

__all__ = [
    "Bounds",
    "Controller",
    "Decision",
    "Gauges",
    "Observation",
    "Remembered",
    "Streams",
    "pace_s",
]
