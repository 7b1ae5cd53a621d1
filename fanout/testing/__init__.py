"""For tests of programs that use fanout: a job store in memory and a fake model server.

`MemoryStore` takes the place of Redis, `FakeEndpoint` that of the model server; `faults` names
every way in which a request can go wrong. None of these touches a network or waits for a clock.

`Simulator` is a server on a port of this machine: it behaves under load as a real one, and counts
what is in flight. `simulator_process` runs it as a process of its own.
"""

from fanout.sim.simulator import Simulator, SimulatorProcess, simulator_process
from fanout.testing import faults
from fanout.testing.endpoint import Answer, FakeEndpoint, Sent
from fanout.testing.faults import Completion, Fault
from fanout.testing.store import MemoryStore

__all__ = [
    "Answer",
    "Completion",
    "FakeEndpoint",
    "Fault",
    "MemoryStore",
    "Sent",
    "Simulator",
    "SimulatorProcess",
    "faults",
    "simulator_process",
]
