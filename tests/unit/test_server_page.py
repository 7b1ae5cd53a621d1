"""The load that a server tells, asked over HTTP, and who tells none."""

from __future__ import annotations

import httpx
import pytest

from fanout import Endpoint
from fanout.server_metrics import ServerLoad
from fanout_workers.auto import Gauges
from fanout_workers.leader import gauges_of
from fanout_workers.server_page import ServerPage

pytestmark = pytest.mark.anyio

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 12.0
vllm:num_requests_running{engine="1",model_name="m"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 1e1
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0"} 0.5
"""


def page(answer: object) -> ServerPage:
    endpoint = Endpoint(name="spark", url="http://spark:8000/v1", api_key="s3cret")
    return ServerPage(endpoint, httpx.MockTransport(answer))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metrics", "requests"),
    [
        (VLLM, 25),
        (b"llamacpp:requests_processing 4\nllamacpp:requests_deferred 2\n", 6),
        (b"vllm:num_requests_running 0.0\n", 0),
        (b"vllm:num_requests_running NaN\n", None),
        (b"vllm:kv_cache_usage_perc 0.5\n", None),
        (b"process_cpu_seconds_total 4\n", None),
        (b"<html>\xff", None),
        (b"", None),
    ],
)
async def test_what_runs_and_waits(metrics: bytes, requests: int | None) -> None:
    asked = page(lambda request: httpx.Response(200, content=metrics))
    assert await asked.requests() == requests
    assert asked.known is (requests is not None)


@pytest.mark.parametrize("status", [404, 503])
async def test_a_server_without_the_page(status: int) -> None:
    asked = page(lambda request: httpx.Response(status, content=VLLM))
    assert await asked.read() is None
    assert not asked.known


async def test_the_page_is_beside_v1_and_asked_with_the_key() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, content=VLLM)

    assert await page(answer).read() == ServerLoad(15.0, 10.0, 0.5)
    assert str(asked[0].url) == "http://spark:8000/metrics"
    assert asked[0].headers["authorization"] == "Bearer s3cret"


async def test_a_server_that_is_away_tells_nothing_and_stays_known() -> None:
    up = True

    def answer(request: httpx.Request) -> httpx.Response:
        if up:
            return httpx.Response(200, content=VLLM)
        raise httpx.ConnectError("refused", request=request)

    asked = page(answer)
    await asked.read()
    up = False
    assert await asked.read() is None
    assert asked.known


def test_the_controller_needs_what_runs_and_what_waits() -> None:
    assert gauges_of(ServerLoad(256, 3, 0.91, 12, 99)) == Gauges(256, 3, 0.91, 12, 99)
    assert gauges_of(ServerLoad(4, 7)) == Gauges(4, 7, None, 0.0, None)
    assert gauges_of(ServerLoad(running=4)) is None
