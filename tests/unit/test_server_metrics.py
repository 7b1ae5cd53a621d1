"""/metrics of vLLM and of llama.cpp's server."""

from __future__ import annotations

import pytest

from fanout.server_metrics import ServerLoad, read_server_metrics

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="openai/gpt-oss-120b"} 250.0
vllm:num_requests_running{engine="1",model_name="openai/gpt-oss-120b"} 6.0
vllm:num_requests_waiting{engine="0",model_name="a} b{"} 12.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:num_preemptions_total{engine="0",model_name="m"} 3.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
vllm:generation_tokens_total{engine="0",model_name="m"} 1.25e+06
vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3",model_name="m"} 0.0
process_open_fds 51.0
"""
LLAMA = """\
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 16
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 4
llamacpp:tokens_predicted_total 1234
"""


def test_vllm_over_its_engines() -> None:
    assert read_server_metrics(VLLM) == ServerLoad(256.0, 12.0, 0.75, 3.0, 1_250_000.0)


def test_llama_cpp() -> None:
    # It counts a reply's tokens when the reply ends, so there is no count of them as they come.
    assert read_server_metrics(LLAMA) == ServerLoad(running=16.0, waiting=4.0)


def test_an_older_name_of_the_kv_cache() -> None:
    load = read_server_metrics('vllm:gpu_cache_usage_perc{model_name="m"} 0.5 1700000000000\n')
    assert load == ServerLoad(kv=0.5)


@pytest.mark.parametrize("text", ["", "<html>not found</html>", "process_open_fds 5\n", "vllm:"])
def test_other_pages_say_nothing(text: str) -> None:
    assert read_server_metrics(text) is None


def test_a_broken_line_is_passed_over() -> None:
    assert read_server_metrics("vllm:num_requests_running\nvllm:num_requests_waiting 2\n") == (
        ServerLoad(waiting=2.0)
    )
