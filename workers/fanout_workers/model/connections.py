"""The seam to the network: an httpx transport, and a short cut past httpx for the one that counts.

Any `httpx.AsyncBaseTransport` will do: tests put in `httpx.MockTransport` or
`fanout.testing.FakeEndpoint`. Workers have aiohttp's connections, because httpx's own pool scans
every connection for each request and holds 42 of 256 in flight. Those are asked for a reply
directly: httpx's requests and responses over them cost more CPU than the exchange itself
(docs/performance.md).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import aiohttp
import httpx
import yarl
from httpx_aiohttp import AiohttpTransport

from fanout_workers.model.posting import Poster

#: vLLM closes an idle connection after 5 s; ours must be gone before.
_KEEPALIVE_S = 4.0
_CONNECT_S = 10.0

#: What a transport raises, at the request or in the reply.
ERRORS = (httpx.TransportError, httpx.DecodingError, OSError, aiohttp.ClientError)
#: Errors before the first byte that no waiting mends: the URL or a header is wrong.
HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, aiohttp.InvalidURL)
#: Before the first byte: what came is no HTTP.
NO_HTTP = (aiohttp.ClientPayloadError, aiohttp.ClientResponseError)
#: Before the first byte: the server closed or reset the connection.
HUNG_UP = (
    aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError,
    httpx.RemoteProtocolError, httpx.ReadError,
)  # fmt: skip
#: Before the first byte: there was no connection at all.
NOT_CONNECTED = (
    aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError, httpx.ConnectError,
    httpx.TimeoutException,
)  # fmt: skip


class Answer(Protocol):
    """A reply whose body is still to be read."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; names in any case."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body, decompressed, as it comes."""

    def whole(self) -> bytes | None:
        """The body, if all of it is there already and nothing of it has been read."""

    async def aclose(self) -> None:
        """Give the connection back; a body that was not read to its end is aborted."""


class Connections(AiohttpTransport):
    """aiohttp's connections: an httpx transport, with `request` for those who need no httpx."""

    client: aiohttp.ClientSession

    def __init__(self, client: aiohttp.ClientSession, timeout: aiohttp.ClientTimeout) -> None:
        super().__init__(client=client)
        self._poster = Poster(client, timeout)

    async def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        """The reply to one request; raises aiohttp's errors."""
        if method == "POST" and body is not None and self._poster.takes(url):
            return await self._poster.post(url, headers, body)
        return _AiohttpAnswer(
            await self.client.request(
                method,
                yarl.URL(url, encoded=True),
                headers=headers,
                data=body,
                allow_redirects=False,
            )
        )


def open_transport() -> Connections:
    """Connections for any number of requests; to be made and closed on the running event loop."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
    session = aiohttp.ClientSession(
        # limit=0: permits limit what is in flight, and a second limit would only hide there.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=timeout,
    )
    return Connections(session, timeout)


async def answer_to(
    transport: httpx.AsyncBaseTransport,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> Answer:
    """The reply to one request over any transport; raises one of `ERRORS`.

    `AsyncClient` is left out on purpose: cookies, redirects and environment proxies are nothing a
    model server needs.
    """
    if isinstance(transport, Connections):
        return await transport.request(method, url, headers, body)
    request = httpx.Request(method, url, headers=headers, content=body)
    request.extensions = {"timeout": {"connect": _CONNECT_S}}
    return _HttpxAnswer(await transport.handle_async_request(request))


class _AiohttpAnswer:
    __slots__ = ("_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    def chunks(self) -> AsyncIterator[bytes]:
        return self._response.content.iter_any()

    def whole(self) -> bytes | None:
        return None

    async def aclose(self) -> None:
        self._response.release()
        await self._response.wait_for_close()


class _HttpxAnswer:
    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    def chunks(self) -> AsyncIterator[bytes]:
        return self._response.aiter_bytes()

    def whole(self) -> bytes | None:
        return None

    async def aclose(self) -> None:
        await self._response.aclose()
