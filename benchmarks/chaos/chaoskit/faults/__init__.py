"""The faults, each a small class: what it draws from the dice, and how it strikes a rig.

`FAULTS` has them by name.
"""

from __future__ import annotations

from chaoskit.faults.base import Fault
from chaoskit.faults.broker import (
    CutAll,
    CutSome,
    EmptyRedis,
    FullRedis,
    Garbage,
    KillRedis,
    PowerCut,
    RottenTasks,
    StopRedis,
    TermRedis,
    TornRedis,
)
from chaoskit.faults.clients import (
    CancelSecondJob,
    DiskFull,
    KillClient,
    SecondJob,
    StopClient,
    TermClient,
)
from chaoskit.faults.endpoints import (
    EndpointDown,
    EndpointFaulty,
    EndpointHangs,
    EndpointOut,
    HugeReply,
)
from chaoskit.faults.wires import WireDelay, WireHole, WireReset, WireSlow
from chaoskit.faults.workers import (
    ChangeN,
    ClockJump,
    KillWorker,
    Poison,
    StopWorker,
    TermWorker,
    WorkerJoins,
    WorkerLeaves,
)

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        KillWorker,
        TermWorker,
        StopWorker,
        WorkerJoins,
        WorkerLeaves,
        ClockJump,
        Poison,
        ChangeN,
        KillClient,
        TermClient,
        StopClient,
        DiskFull,
        SecondJob,
        CancelSecondJob,
        KillRedis,
        TermRedis,
        StopRedis,
        EmptyRedis,
        TornRedis,
        PowerCut,
        FullRedis,
        CutAll,
        CutSome,
        Garbage,
        RottenTasks,
        WireReset,
        WireDelay,
        WireSlow,
        WireHole,
        EndpointDown,
        EndpointHangs,
        EndpointOut,
        EndpointFaulty,
        HugeReply,
    )
}

#: Faults that fanout cannot stand yet, and the feature that each waits for. A row leaves this table
#: when its feature is there; nothing else has to change.

__all__ = ["FAULTS", "Fault"]
