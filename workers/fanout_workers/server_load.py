"""How many requests a model server has, by its own account."""

from __future__ import annotations

import asyncio
import logging
import re

import aiohttp
import httpx

from fanout import Endpoint

log = logging.getLogger(__name__)

_TIMEOUT_S = 2.0
#: What runs and what waits for a slot: gauges of vLLM, one a model and engine, and of llama.cpp.
_GAUGES = re.compile(
    rb"^(?:vllm:num_requests_(?:running|waiting)|llamacpp:requests_(?:processing|deferred))"
    rb"(?:\{[^\n]*\})? +([0-9.eE+-]+)",
    re.MULTILINE,
)


class ServerLoad:
    """Looks at an endpoint's `/metrics`.

    Args:
        endpoint: the model server.
        transport: connections.

    Attributes:
        known: whether the server has ever told its load.
    """

    def __init__(self, endpoint: Endpoint, transport: httpx.AsyncBaseTransport) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self.known = False

    async def read(self) -> int | None:
        """Requests that run or wait there, whoever sent them; None if the server does not tell."""
        key = self._endpoint.key()
        request = httpx.Request(
            "GET",
            f"{self._endpoint.root}/metrics",
            headers={"authorization": f"Bearer {key}"} if key else {},
        )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                response = await self._transport.handle_async_request(request)
                try:
                    body = await response.aread() if response.status_code == 200 else b""
                finally:
                    await response.aclose()
        except (httpx.HTTPError, OSError, aiohttp.ClientError) as error:
            log.debug("endpoint %s does not tell its load: %r", self._endpoint.name, error)
            return None
        load = load_in(body)
        self.known = self.known or load is not None
        return load


def load_in(metrics: bytes) -> int | None:
    """The sum of the gauges in Prometheus's text format; None where there are none.

    A line at a time by hand: a server's whole exposition has thousands of lines, which a parser
    would turn into objects four times a second.
    """
    found = _GAUGES.findall(metrics)
    try:
        return round(sum(map(float, found))) if found else None
    except (ValueError, OverflowError):  # NaN, or no number at all
        return None
