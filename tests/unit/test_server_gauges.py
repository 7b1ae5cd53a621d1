"""Reading /metrics of vLLM and llama.cpp."""

from __future__ import annotations

import httpx
import pytest

from fanout import Endpoint
from fanout_workers.auto import Gauges
from fanout_workers.server_gauges import GaugeReader, gauges_in

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 200.0
vllm:num_requests_running{engine="1",model_name="m"} 56.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.91
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.4
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="m"} 12.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 1234567.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} 3.0
"""
LLAMA = """# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 99
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 7
"""


def test_vllm() -> None:
    assert gauges_in(VLLM) == Gauges(256, 3, 0.91, 12, 1234567)


def test_llama_cpp_shows_neither_cache_nor_tokens_as_they_come() -> None:
    assert gauges_in(LLAMA) == Gauges(4, 7, None, 0.0, None)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "other_metric 3\n", "<html>", "vllm:num_requests_running{ x"]
)
def test_a_server_that_tells_nothing(text: str) -> None:
    assert gauges_in(text) is None


@pytest.mark.anyio
async def test_the_server_is_asked_beside_v1_and_with_its_key() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/metrics"
        assert request.headers["authorization"] == "Bearer secret"
        return httpx.Response(200, text=LLAMA)

    endpoint = Endpoint(name="a", url="http://server:8000/v1", api_key="secret")
    reader = GaugeReader(endpoint, httpx.MockTransport(answer))
    assert await reader.read() == Gauges(4, 7)
    for broken in (httpx.Response(404), httpx.ConnectError("refused")):

        def fail(request: httpx.Request, broken: object = broken) -> httpx.Response:
            if isinstance(broken, Exception):
                raise broken
            assert isinstance(broken, httpx.Response)
            return broken

        assert await GaugeReader(endpoint, httpx.MockTransport(fail)).read() is None
