"""What a look at the endpoints shows, and what it does to their circuits."""

from __future__ import annotations

import asyncio

import pytest

from fanout import Endpoint, Failure, Kind
from fanout.testing import FakeEndpoint, faults
from fanout_workers import health
from fanout_workers.health import Health
from fanout_workers.model import ModelClient
from fanout_workers.permits import Permits

pytestmark = pytest.mark.anyio


class Bench:
    """One endpoint with its circuit, and a clock that the test turns."""

    def __init__(self, model: str | None = "fake") -> None:
        self.now = 0.0
        self.fake = FakeEndpoint()
        endpoint = Endpoint(name="spark", url="http://spark", model=model)
        self.permits = Permits([endpoint], lambda: self.now)
        self.circuit = self.permits.load("spark").circuit
        self.health = Health({"spark": ModelClient(endpoint, self.fake)}, self.permits)

    def fail(self, kind: Kind = Kind.CONNECT, times: int = 5) -> None:
        for _ in range(times):
            self.circuit.failed(self.circuit.begin(), Failure(kind, "refused"))
        self.now += 60

    async def canary_ended(self) -> None:
        async with asyncio.timeout(10):
            while self.health._canaries:
                await asyncio.sleep(0)


async def test_a_well_endpoint_has_no_problem() -> None:
    bench = Bench()
    assert await bench.health.problems(first=True) == {}
    assert bench.circuit.state == "closed"


@pytest.mark.parametrize("fault", [faults.CONNECTION_REFUSED, faults.UNAVAILABLE, faults.RESET])
async def test_what_is_away_at_the_start_is_not_tried_first(fault: faults.Fault) -> None:
    bench = Bench()
    bench.fake.outage = fault
    assert "spark" in await bench.health.problems(first=True)
    assert bench.circuit.state == "open"


async def test_another_model_at_the_start_is_not_tried_first() -> None:
    bench = Bench(model="other")
    assert "does not serve 'other'" in (await bench.health.problems(first=True))["spark"]
    assert bench.circuit.state == "open"


async def test_refused_looks_open_a_circuit_as_requests_do() -> None:
    bench = Bench()
    bench.fake.outage = faults.CONNECTION_REFUSED
    for _ in range(4):
        await bench.health.problems()
    assert bench.circuit.state == "closed"
    await bench.health.problems()
    assert bench.circuit.state == "open"


async def test_an_open_circuit_waits_for_a_look_that_is_well() -> None:
    bench = Bench()
    bench.fail()
    bench.fake.outage = faults.CONNECTION_REFUSED
    await bench.health.problems()
    assert bench.circuit.state == "open"
    bench.fake.outage = None
    assert await bench.health.problems() == {}  # all it waits for is an item
    assert bench.circuit.state == "half-open"
    epoch = bench.circuit.begin()
    assert "half-open" in (await bench.health.problems())["spark"]
    bench.circuit.answered(epoch)
    assert await bench.health.problems() == {}


async def test_an_open_circuit_waits_for_its_model() -> None:
    bench = Bench(model="other")
    bench.fail()
    await bench.health.problems()
    assert bench.circuit.state == "open"


@pytest.mark.parametrize("kind", [Kind.SERVER, Kind.TIMEOUT])
async def test_after_failures_that_come_late_a_canary_goes_first(kind: Kind) -> None:
    bench = Bench()
    bench.fail(kind, 10)
    bench.fake.hold()
    await bench.health.problems()
    await bench.fake.reached(1)
    assert (bench.circuit.state, bench.circuit.allows) == ("half-open", False)
    await bench.health.problems()
    assert len(bench.fake.requests) == 1
    assert bench.fake.requests[0].body["max_tokens"] < 50
    bench.fake.release()
    await bench.canary_ended()
    assert (bench.circuit.state, bench.circuit.allows) == ("closed", True)


@pytest.mark.parametrize("fault", [faults.SERVER_ERROR, faults.CUT_BODY, faults.UNAVAILABLE])
async def test_a_canary_that_fails_leaves_it_open(fault: faults.Fault) -> None:
    bench = Bench()
    bench.fail(Kind.SERVER, 10)
    bench.fake._reply = lambda request: fault
    await bench.health.problems()
    await bench.canary_ended()
    assert bench.circuit.state == "open"


@pytest.mark.parametrize(
    "fault", [faults.TRUNCATED, faults.REASONING, faults.EMPTY, faults.BAD_REQUEST]
)
async def test_a_canary_need_not_make_sense(fault: faults.Fault) -> None:
    bench = Bench()
    bench.fail(Kind.SERVER, 10)
    bench.fake._reply = lambda request: fault
    await bench.health.problems()
    await bench.canary_ended()
    assert bench.circuit.state == "closed"


async def test_a_canary_is_never_one_more_than_n() -> None:
    bench = Bench()
    bench.fail(Kind.SERVER, 10)
    bench.permits.set_limit("spark", 0)
    await bench.health.problems()
    await bench.canary_ended()
    assert bench.fake.requests == []
    bench.permits.set_limit("spark", 1)
    bench.fake.hold()
    await bench.health.problems()
    await bench.fake.reached(1)
    assert bench.permits.in_flight() == {"spark": 1}
    bench.fake.release()
    await bench.canary_ended()
    assert bench.circuit.state == "closed"
    assert bench.permits.in_flight() == {"spark": 0}


async def test_a_canary_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_CANARY_S", 0.01)
    bench = Bench()
    bench.fail(Kind.TIMEOUT, 10)
    bench.fake.hold()
    await bench.health.problems()
    await bench.canary_ended()
    assert bench.circuit.state == "open"
    assert bench.fake.aborted == 1
