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
    RedisDiskFull,
    RefusingRedis,
    RottenTasks,
    StopRedis,
    TermRedis,
    TornRedis,
)
from chaoskit.faults.clients import (
    CancelSecondJob,
    DiskFull,
    KillClient,
    ReadOnlyOutput,
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
        ReadOnlyOutput,
        SecondJob,
        CancelSecondJob,
        KillRedis,
        TermRedis,
        StopRedis,
        EmptyRedis,
        TornRedis,
        PowerCut,
        FullRedis,
        RedisDiskFull,
        RefusingRedis,
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

__all__ = ["FAULTS", "Fault"]
