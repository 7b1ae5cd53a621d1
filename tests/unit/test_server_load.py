"""The load that a server tells, as vLLM and llama.cpp write it, and what is none."""

from __future__ import annotations

import httpx
import pytest

from fanout import Endpoint
from fanout_workers.server_load import ServerLoad, load_in

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


@pytest.mark.parametrize(
    ("metrics", "load"),
    [
        (VLLM, 25),
        (b"llamacpp:requests_processing 4\nllamacpp:requests_deferred 2\n", 6),
        (b"vllm:num_requests_running 0.0\n", 0),
        (b"vllm:num_requests_running NaN\n", None),
        (b"process_cpu_seconds_total 4\n", None),
        (b"", None),
    ],
)
def test_what_runs_and_waits(metrics: bytes, load: int | None) -> None:
    assert load_in(metrics) == load


@pytest.mark.parametrize(
    ("status", "load", "known"), [(200, 25, True), (404, None, False), (503, None, False)]
)
async def test_a_look(status: int, load: int | None, known: bool) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, content=VLLM)

    endpoint = Endpoint(name="spark", url="http://spark:8000/v1", api_key="s3cret")
    look = ServerLoad(endpoint, httpx.MockTransport(answer))
    assert await look.read() == load
    assert look.known is known
    assert str(asked[0].url) == "http://spark:8000/metrics"
    assert asked[0].headers["authorization"] == "Bearer s3cret"


async def test_a_server_that_is_away_tells_nothing_and_stays_known() -> None:
    up = True

    def answer(request: httpx.Request) -> httpx.Response:
        if up:
            return httpx.Response(200, content=VLLM)
        raise httpx.ConnectError("refused", request=request)

    endpoint = Endpoint(name="spark", url="http://spark:8000")
    look = ServerLoad(endpoint, httpx.MockTransport(answer))
    await look.read()
    up = False
    assert await look.read() is None
    assert look.known
