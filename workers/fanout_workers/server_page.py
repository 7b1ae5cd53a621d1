"""What a model server says of its own load, for leases and for the controller of N."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import httpx

from fanout import Endpoint
from fanout.server_metrics import ServerLoad, read_server_metrics

log = logging.getLogger(__name__)

_TIMEOUT_S = 3.0


class ServerPage:
    """Reads an endpoint's `/metrics`.

    Args:
        endpoint: the model server.
        transport: connections.

    Attributes:
        known: whether the server has ever told what runs there.
    """

    def __init__(self, endpoint: Endpoint, transport: httpx.AsyncBaseTransport) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self.known = False

    async def read(self) -> ServerLoad | None:
        """What it says now; None if it says nothing, or not what runs there."""
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
        load = read_server_metrics(body.decode("utf-8", errors="replace"))
        if load is None or load.running is None:
            return None
        self.known = True
        return load

    async def requests(self) -> int | None:
        """Requests that run or wait there, whoever sent them; None if the server does not tell."""
        load = await self.read()
        return None if load is None else round((load.running or 0.0) + (load.waiting or 0.0))
