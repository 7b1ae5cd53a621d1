"""HTTP/1.1 for the simulator: one connection is one protocol object, without a task.

A server that referees must not be what is measured: this costs about a fifth of what a framework's
request does, and says at once when a client has gone.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from http import HTTPStatus
from typing import Any, Protocol, cast

import httptools

#: More than this is no chat request.
_MAX_BODY = 64 * 2**20
#: Between half a body and the reset, so that the half gets out.
_LINGER_S = 0.02
_JSON = "application/json"
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Handler(Protocol):
    """What a connection tells the server."""

    def head(self, exchange: Exchange) -> None:
        """A request's head has arrived."""

    def request(self, exchange: Exchange) -> None:
        """A request is complete, and is to be answered now or later."""

    def gone(self, exchange: Exchange) -> None:
        """The client has left before the reply was written."""


class Exchange:
    """One request and its reply.

    Attributes:
        method: in capitals.
        path: with the query.
        request_id: header X-Request-Id.
        data: for the server.
    """

    __slots__ = (
        "_complete",
        "_connection",
        "_parts",
        "_streaming",
        "data",
        "done",
        "keep_alive",
        "method",
        "path",
        "request_id",
        "size",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._parts: list[bytes] = []
        self._streaming = False
        self._complete = False
        self.method = ""
        self.path = ""
        self.request_id: str | None = None
        self.keep_alive = True
        self.done = False
        self.size = 0
        self.data: Any = None

    @property
    def body(self) -> bytes:
        """The request's body."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    @property
    def too_large(self) -> bool:
        """Whether the body was longer than any chat request, and has been dropped."""
        return self.size > _MAX_BODY

    def reply(self, status: int, body: bytes, kind: str = _JSON) -> None:
        """Send a whole reply."""
        self._write(_head(status, kind, len(body), self.keep_alive) + body)
        self._end()

    def open_stream(self) -> None:
        """Send the head of a streamed reply."""
        self._streaming = True
        self._write(_head(200, "text/event-stream; charset=utf-8", None, self.keep_alive))

    def send(self, data: bytes) -> None:
        """Send a part of a streamed reply."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def close_stream(self) -> None:
        """End a streamed reply."""
        self._write(b"0\r\n\r\n")
        self._end()

    def cut(self, body: bytes) -> None:
        """Send this part of a reply, then close in good order."""
        self.keep_alive = False
        if self._streaming:
            self.send(body)
            self.close_stream()
        else:
            self._write(_head(200, _JSON, None, False, chunked=False) + body)
            self._end()

    def break_off(self, body: bytes, length: int) -> None:
        """Send this part of a reply of `length` bytes, then reset the connection."""
        if self._streaming:
            self.send(body)
        else:
            self._write(_head(200, _JSON, length, True) + body)
        self.done = True
        self._connection.reset(_LINGER_S)

    def reset(self) -> None:
        """Reset the connection."""
        self.done = True
        self._connection.reset(0.0)

    def _write(self, data: bytes) -> None:
        self._connection.write(data)

    def _end(self) -> None:
        self.done = True
        self._connection.finished(self)


class Connection(asyncio.Protocol):
    """Reads requests, one after another; a pipelined one waits for the reply before it."""

    def __init__(self, handler: Handler, connections: set[Connection]) -> None:
        self._handler = handler
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchanges: deque[Exchange] = deque()
        self._url = b""
        self._expects = False
        self.idle_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self.idle_since = asyncio.get_running_loop().time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        for exchange in self._exchanges:
            if not exchange.done:
                exchange.done = True
                self._handler.gone(exchange)
        self._exchanges.clear()

    def data_received(self, data: bytes) -> None:
        self.idle_since = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.close()
        except httptools.HttpParserError:
            self.write(_head(400, _JSON, 0, False))
            self.close()

    # httptools' callbacks.

    def on_message_begin(self) -> None:
        self._url = b""
        self._expects = False
        self._exchanges.append(Exchange(self))

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"x-request-id":
            self._exchanges[-1].request_id = value.decode("latin-1")
        elif name == b"expect":
            self._expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        exchange = self._exchanges[-1]
        exchange.method = self._parser.get_method().decode()
        exchange.path = self._url.decode("latin-1")
        exchange.keep_alive = self._parser.should_keep_alive()
        if self._expects:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._handler.head(exchange)

    def on_body(self, body: bytes) -> None:
        exchange = self._exchanges[-1]
        exchange.size += len(body)
        if exchange.size <= _MAX_BODY:
            exchange._parts.append(body)

    def on_message_complete(self) -> None:
        exchange = self._exchanges[-1]
        exchange._complete = True
        if exchange is self._exchanges[0]:
            self._handler.request(exchange)

    def finished(self, exchange: Exchange) -> None:
        """An exchange has been replied to: on with the next."""
        self._exchanges.popleft()
        if not exchange.keep_alive:
            self.close()
        elif not self._exchanges:
            self.idle_since = asyncio.get_running_loop().time()
        elif self._exchanges[0]._complete:
            asyncio.get_running_loop().call_soon(self._next, self._exchanges[0])

    def _next(self, exchange: Exchange) -> None:
        if not exchange.done:
            self._handler.request(exchange)

    def write(self, data: bytes) -> None:
        """Send bytes, if the client is still there."""
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """Close when all has been sent."""
        if self._transport is not None:
            self._transport.close()

    def reset(self, after_s: float) -> None:
        """Close with a TCP reset."""
        if after_s:
            asyncio.get_running_loop().call_later(after_s, self.reset, 0.0)
        elif self._transport is not None:
            bare = self._transport.get_extra_info("socket")
            if bare is not None:
                bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


def _head(
    status: int, kind: str, length: int | None, keep_alive: bool, *, chunked: bool = True
) -> bytes:
    if length is not None:
        size = f"content-length: {length}\r\n"
    else:
        size = "transfer-encoding: chunked\r\n" if chunked else ""
    end = "" if keep_alive else "connection: close\r\n"
    reason = _REASONS.get(status, "")
    return f"HTTP/1.1 {status} {reason}\r\ncontent-type: {kind}\r\n{size}{end}\r\n".encode()
