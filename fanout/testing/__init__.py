"""For tests of programs that use fanout: a job store in memory and a fake model server.

`MemoryStore` takes the place of Redis, `FakeEndpoint` that of the model server; `faults` names
every way in which a request can go wrong. Nothing here touches a network or waits for a clock.
"""

from fanout.testing import faults
from fanout.testing.endpoint import Answer, FakeEndpoint, Sent
from fanout.testing.faults import Completion, Fault
from fanout.testing.store import MemoryStore

__all__ = ["Answer", "Completion", "FakeEndpoint", "Fault", "MemoryStore", "Sent", "faults"]
