"""A TCP proxy that can delay, throttle, swallow and reset, on the running event loop."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress

_CHUNK = 64 * 1024


class Proxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`.

    Attributes:
        delay_s: how much later each piece arrives, in each direction.
        bytes_per_s: of each connection and direction; None: as many as there are.
        open: nothing gets through while it is not set.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.delay_s = 0.0
        self.bytes_per_s: int | None = None
        self.open = asyncio.Event()
        self.open.set()
        self._target = target
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Listen no more, and end what is there."""
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self) -> None:
        """Reset every connection, the server's side first."""
        for client, server in list(self._pairs):
            _reset(server)
            _reset(client)

    async def _connected(
        self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.open.wait()
            server_reader, server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # nobody listens there: refused here as well
            _reset(client)
            self._tasks.discard(task)
            return
        pair = (client, server)
        self._pairs.add(pair)
        try:
            # Whichever way ends first ends both: HTTP and Redis know no half-closed connections.
            ways = [
                asyncio.create_task(self._pump(client_reader, server)),
                asyncio.create_task(self._pump(server_reader, client)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._pairs.discard(pair)
            self._tasks.discard(task)
            for writer in (server, client):
                writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                await self.open.wait()
                writer.write(data)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    bare = writer.get_extra_info("socket")
    with suppress(OSError):
        if bare is not None:
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
