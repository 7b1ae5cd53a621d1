"""What the simulator can carry, so that it is not what other benchmarks measure.

The simulator runs on one processor, a client of bare sockets on another: 256 connections, bodies of
2 KB, kept alive; then 256 streams at once, at the rate of a large model.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import uvloop

from fanout.testing import SimulatorProcess, simulator_process

CONNECTIONS = 256
REQUESTS = 40_000
STREAMS = 256
STREAM_S = 10
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "skills": {"type": "array", "items": {"type": "string"}},
        "seniority": {"enum": ["junior", "senior", "lead"]},
    },
    "required": ["title", "skills", "seniority"],
}
MESSAGES = [
    {"role": "system", "content": "Extract the posting. " * 40},
    {"role": "user", "content": "We look for a welder. " * 40},
]


def chat(**more: object) -> bytes:
    """A request's body."""
    return json.dumps({"messages": MESSAGES, **more}).encode()


class Connection(asyncio.Protocol):
    """Sends one request after another for as long as `load` has some."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        if self._load.left:
            self._load.left -= 1
            self._transport.write(self._load.request % self._load.left)
        else:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._read += data
        end = self._read.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._read[:end]
        at = head.index(b"content-length: ") + 16
        whole = end + 4 + int(head[at:].partition(b"\r\n")[0])
        if len(self._read) >= whole:
            assert head.startswith(b"HTTP/1.1 200"), head
            self._read = self._read[whole:]
            self._load.answered()
            self._send()


class Load:
    """`count` requests over `CONNECTIONS` connections."""

    def __init__(self, body: bytes, count: int) -> None:
        self.left = count
        self._due = count
        self._done = asyncio.get_running_loop().create_future()
        self.request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: sim\r\nContent-Type: application/json\r\n"
            b"X-Request-Id: item-%%d-0\r\nContent-Length: %d\r\n\r\n" % len(body)
        ) + body.replace(b"%", b"%%")

    def answered(self) -> None:
        self._due -= 1
        if not self._due:
            self._done.set_result(None)

    async def run(self, url: str) -> float:
        """Seconds from the first request to the last answer."""
        where = urlsplit(url)
        loop = asyncio.get_running_loop()
        began = perf_counter()
        for _ in range(CONNECTIONS):
            await loop.create_connection(lambda: Connection(self), where.hostname, where.port)
        await self._done
        return perf_counter() - began


class Sink(asyncio.Protocol):
    """Asks for one stream, and counts its events."""

    events = 0

    def __init__(self, request: bytes, ended: asyncio.Future[None]) -> None:
        self._request = request
        self._ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        Sink.events += data.count(b"data: ")
        if b"[DONE]" in data:
            self._transport.close()
            self._ended.set_result(None)


async def streams(url: str, body: bytes) -> None:
    """Read `STREAMS` streamed replies at the same time."""
    where = urlsplit(url)
    loop = asyncio.get_running_loop()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: sim\r\nContent-Length: {len(body)}\r\n\r\n"
    ended = [loop.create_future() for _ in range(STREAMS)]
    for one in ended:
        request = head.encode() + body
        await loop.create_connection(
            lambda one=one, request=request: Sink(request, one), where.hostname, where.port
        )
    await asyncio.gather(*ended)


def cpu_s(process: SimulatorProcess) -> float:
    """Processor seconds that the simulator has taken."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def carried(body: bytes, count: int, *arguments: str) -> dict[str, float]:
    """Requests a second, and the simulator's processor seconds for 1,000 of them."""
    with simulator_process(*arguments, cpu=0) as sim:

        async def load(count: int) -> float:
            return await Load(body, count).run(sim.url)

        uvloop.run(load(2_000))
        before = cpu_s(sim)
        seconds = uvloop.run(load(count))
        told = sim.stats(points=0)
        assert told["answered"] == count + 2_000, told
        assert told["in_flight"]["max"] <= CONNECTIONS, told
        return {
            "requests_per_s": round(count / seconds),
            "cpu_s_per_1000": round((cpu_s(sim) - before) / count * 1000, 3),
        }


def streamed() -> dict[str, float]:
    """Share of a processor that 256 streams take, at 40 tokens/s each."""
    arguments = ("--seconds", str(STREAM_S), "--output-lengths", str(40 * STREAM_S))
    with simulator_process(*arguments, cpu=0) as sim:
        before, began = cpu_s(sim), perf_counter()
        uvloop.run(streams(sim.url, chat(stream=True)))
        seconds = perf_counter() - began
        return {
            "events_per_s": round(Sink.events / seconds),
            "cpu_share": round((cpu_s(sim) - before) / seconds, 3),
        }


def main() -> None:
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {0} or {0})
    form = {"type": "json_schema", "json_schema": {"name": "posting", "schema": SCHEMA}}
    figures = {
        "zero_delay": carried(chat(), REQUESTS, "--seconds", "0", "--output-lengths", "100"),
        "zero_delay_schema": carried(
            chat(response_format=form), REQUESTS, "--seconds", "0", "--output-lengths", "100"
        ),
        "curve": carried(
            chat(max_tokens=100), REQUESTS, "--model", "moe", "--speed", "10000", "--noise", "0.04"
        ),
        "streams_of_256": streamed(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
