"""A stand-in for the simulator: `python server.py PORT MEAN_S`; 0 answers at once."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from typing import Any

import uvloop

CONTENT = json.dumps(
    {"title": "Engineer", "company": "Acme", "remote": True, "salary": 90000, "skills": ["a", "b"]}
)
REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "overhead",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": CONTENT},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 600, "completion_tokens": 40, "total_tokens": 640},
    }
).encode()


def _response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


class Stats:
    answered = 0
    in_flight = 0
    most = 0
    seconds = 0.0
    at = time.monotonic()

    def move(self, by: int) -> None:
        now = time.monotonic()
        self.seconds += self.in_flight * (now - self.at)
        self.at = now
        self.in_flight += by
        self.most = max(self.most, self.in_flight)


STATS = Stats()
MEAN_S = 0.0
RNG = random.Random(1)


class Server(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.data = bytearray()

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (head := self.data.find(b"\r\n\r\n")) >= 0:
            headers = bytes(self.data[:head]).lower()
            at = headers.find(b"content-length:")
            length = int(headers[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.data) < head + 4 + length:
                return
            body = bytes(self.data[head + 4 : head + 4 + length])
            del self.data[: head + 4 + length]
            self.answer(headers, body)

    def answer(self, headers: bytes, body: bytes) -> None:
        if b" /stats" in headers[:60]:
            STATS.move(0)
            found = {
                "answered": STATS.answered,
                "in_flight_seconds": STATS.seconds,
                "max_in_flight": STATS.most,
            }
            self.transport.write(_response(json.dumps(found).encode()))
        elif headers.startswith(b"post"):
            json.loads(body)
            STATS.move(1)
            if MEAN_S:
                delay = RNG.lognormvariate(math.log(MEAN_S) - 0.125, 0.5)
                asyncio.get_running_loop().call_later(delay, self.finish)
            else:
                self.finish()
        else:
            self.transport.write(_response(json.dumps({"data": [{"id": "overhead"}]}).encode()))

    def finish(self) -> None:
        STATS.move(-1)
        STATS.answered += 1
        self.transport.write(_response(REPLY))


async def main() -> None:
    global MEAN_S
    MEAN_S = float(sys.argv[2])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


uvloop.run(main())
