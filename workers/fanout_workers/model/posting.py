"""POST over aiohttp's connections, without aiohttp's request and response objects.

The objects of a request take twice the time of the exchange (docs/performance.md). The connections,
their reuse, TLS and the reading of replies are aiohttp's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import cached_property
from typing import Any

import aiohttp
import yarl
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.http import SERVER_SOFTWARE, HttpProcessingError

#: Bytes of a reply that may wait for their reader, as in aiohttp's sessions.
_READ_BUFFER = 2**16
#: Servers that are posted to, at most.
_ROUTES = 256


class _Route(aiohttp.ClientRequest):
    """What a connector has to know to connect to a server; never sent."""

    @cached_property
    def connection_key(self) -> ConnectionKey:
        return super().connection_key


class PostAnswer:
    """A reply whose head has come.

    Args:
        connection: given back when the body has come to its end.
        head: aiohttp's parsed head.
        body: where the body arrives.
    """

    __slots__ = ("_body", "_connection", "headers", "status")

    def __init__(self, connection: Any, head: Any, body: aiohttp.StreamReader) -> None:
        self.status: int = head.code
        self.headers: Mapping[str, str] = head.headers
        self._connection = connection
        self._body = body
        body.on_eof(connection.release)

    def chunks(self) -> AsyncIterator[bytes]:
        """The body, decompressed, as it comes."""
        return self._body.iter_any()

    def whole(self) -> bytes | None:
        """The body, if all of it is there and has not been read yet."""
        body = self._body
        if not body.is_eof() or body.exception() is not None:
            return None
        return body.read_nowait()

    async def aclose(self) -> None:
        """Give the connection back; it is closed if the body has not come to its end."""
        if self._connection.protocol is not None:
            self._connection.close()


class Poster:
    """Sends POST requests.

    Args:
        session: its connector connects.
        timeout: for connecting.
    """

    def __init__(self, session: aiohttp.ClientSession, timeout: aiohttp.ClientTimeout) -> None:
        self._session = session
        self._timeout = timeout
        self._routes: dict[str, tuple[_Route, str] | None] = {}

    def takes(self, url: str) -> bool:
        """Whether requests to this URL can be sent here; aiohttp itself can send them otherwise."""
        return self._route_to(url) is not None

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> PostAnswer:
        """The reply to one request; raises aiohttp's ClientError, or ValueError for a header."""
        found = self._route_to(url)
        if found is None:
            raise aiohttp.InvalidURL(url)
        route, start = found
        head = _head(start, headers, len(body))
        connection = await self._connected(route)
        try:
            protocol, transport = connection.protocol, connection.transport
            if protocol is None or transport is None:
                raise aiohttp.ServerDisconnectedError
            protocol.set_response_params(read_until_eof=True, read_bufsize=_READ_BUFFER)
            transport.write(head + body)
            while True:
                message, content = await protocol.read()
                # 1xx is no reply yet; 101 would be an upgrade that nobody has asked for.
                if not 100 <= message.code <= 199 or message.code == 101:
                    return PostAnswer(connection, message, content)
        except HttpProcessingError as error:
            connection.close()
            raise aiohttp.ClientPayloadError(f"no HTTP reply: {error.message}") from error
        except BaseException:
            connection.close()
            raise

    async def _connected(self, route: _Route) -> Any:
        connector = self._session.connector
        if connector is None:
            raise aiohttp.ClientConnectionError("the connections are closed")
        try:
            return await connector.connect(route, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to {route.url}") from error
        except aiohttp.ClientError:
            raise
        except OSError as error:
            raise aiohttp.ClientOSError(*error.args) from error

    def _route_to(self, text: str) -> tuple[_Route, str] | None:
        try:
            return self._routes[text]
        except KeyError:
            pass
        url = yarl.URL(text, encoded=True)
        found: tuple[_Route, str] | None = None
        if url.scheme in ("http", "https") and url.raw_host and url.user is None:
            loop = asyncio.get_running_loop()
            route = _Route("POST", url, loop=loop, session=self._session)
            found = (route, f"POST {url.raw_path_qs} HTTP/1.1\r\nHost: {route.headers['Host']}")
        if len(self._routes) >= _ROUTES:
            self._routes.clear()
        self._routes[text] = found
        return found


def _head(start: str, headers: Mapping[str, str], length: int) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    lines += (
        "Accept-Encoding: gzip, deflate",
        f"User-Agent: {SERVER_SOFTWARE}",
        f"Content-Length: {length}",
    )
    head = "\r\n".join((start, *lines, "\r\n"))
    # A header must not end early: what follows would be another one, or another request.
    breaks = len(lines) + 3
    if head.count("\r") != breaks or head.count("\n") != breaks or "\0" in head:
        raise ValueError("a header holds a line break or a zero")
    return head.encode()
