"""What a model server's /metrics say of its load, for the controller of N."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import aiohttp
import httpx
from prometheus_client.parser import text_string_to_metric_families

from fanout import Endpoint
from fanout_workers.auto import Gauges

log = logging.getLogger(__name__)

_TIMEOUT_S = 3.0
#: Names by what they tell, vLLM's and llama.cpp's. llama.cpp counts tokens only when a reply is
#: complete, which is of no use here, and shows no cache.
_RUNNING = ("vllm:num_requests_running", "llamacpp:requests_processing")
_WAITING = ("vllm:num_requests_waiting", "llamacpp:requests_deferred")
_KV = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_PREEMPTIONS = ("vllm:num_preemptions_total",)
_TOKENS = ("vllm:generation_tokens_total",)
_NAMES = (*_RUNNING, *_WAITING, *_KV, *_PREEMPTIONS, *_TOKENS)


class GaugeReader:
    """Reads an endpoint's /metrics.

    Args:
        endpoint: the model server.
        transport: connections.
    """

    def __init__(self, endpoint: Endpoint, transport: httpx.AsyncBaseTransport) -> None:
        self._endpoint = endpoint
        self._transport = transport

    async def read(self) -> Gauges | None:
        """The gauges; None if the server does not show them."""
        key = self._endpoint.key()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        request = httpx.Request("GET", f"{self._endpoint.root}/metrics", headers=headers)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                response = await self._transport.handle_async_request(request)
                try:
                    body = await response.aread() if response.status_code == 200 else b""
                finally:
                    await response.aclose()
        except (httpx.HTTPError, OSError, aiohttp.ClientError) as error:
            log.debug("endpoint %s shows no metrics: %r", self._endpoint.name, error)
            return None
        return gauges_in(body.decode("utf-8", errors="replace"))


def gauges_in(text: str) -> Gauges | None:
    """The gauges in Prometheus's text format; None where it does not tell what runs and waits.

    Several engines behind one server add up; the fullest KV cache counts.
    """
    # A server shows thousands of lines of histograms: only what is wanted is parsed.
    lines = [line for line in text.splitlines() if line.startswith(_NAMES)]
    found: dict[str, list[float]] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                if sample.value == sample.value:  # not NaN
                    found.setdefault(sample.name, []).append(sample.value)
    except ValueError:
        return None
    running, waiting = _sum(found, _RUNNING), _sum(found, _WAITING)
    if running is None or waiting is None:
        return None
    kv = [value for name in _KV for value in found.get(name, ())]
    return Gauges(
        running=running,
        waiting=waiting,
        kv=max(kv) if kv else None,
        preemptions=_sum(found, _PREEMPTIONS) or 0.0,
        tokens=_sum(found, _TOKENS),
    )


def _sum(found: dict[str, list[float]], names: Iterable[str]) -> float | None:
    values = [value for name in names for value in found.get(name, ())]
    return sum(values) if values else None
