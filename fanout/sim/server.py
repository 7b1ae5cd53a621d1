"""The simulator as a server: vLLM's API over the engine, in real or scaled time.

Inside, the engine's time runs `speed` times as fast as the wall clock. Everything that a client is
told (`metrics`, `/metrics`, `/stats`) is in wall seconds, so that it agrees with what the client
measures; at `speed` 60 a server of 700 tokens/s shows 42,000.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from fanout.errors import UsageError
from fanout.sim import bodies
from fanout.sim.answers import Refused
from fanout.sim.chats import Chats, read_json
from fanout.sim.http import Connection, Exchange
from fanout.sim.metrics import CONTENT_TYPE
from fanout.sim.options import Options
from fanout.sim.stats import Stats
from fanout.sim.text import prompt_tokens

_SWEEP_S = 0.5
_CHAT = "/v1/chat/completions"


class Server:
    """One simulated model server, on the running event loop.

    Args:
        options: what it simulates.

    Attributes:
        url: where it listens, once started.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.url = ""
        self._chats = Chats(options)
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._routes: dict[tuple[str, str], Callable[[Exchange], None]] = {
            ("POST", _CHAT): self._chats.take,
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/inference/v1/abort_requests"): self._abort,
            ("GET", "/stats"): self._stats,
            ("POST", "/stats/reset"): self._reset,
            ("POST", "/stats/mark"): self._mark,
            ("POST", "/faults"): self._go_wrong,
        }

    @property
    def stats(self) -> Stats:
        """What it saw."""
        return self._chats.stats

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 is a free one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self, self._connections), host, port, backlog=4096
        )
        bound = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        self._sweep()

    async def stop(self) -> None:
        """Close everything; requests in flight are cut off."""
        self._chats.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.reset(0.0)
        while self._connections:  # the loop tells each of them in its next rounds
            await asyncio.sleep(0)
        if self._server is not None:
            await self._server.wait_closed()

    def snapshot(self, points: int = 200) -> dict[str, Any]:
        """What `/stats` tells."""
        load = self._chats.gauges()
        return {
            **self.stats.snapshot(time.monotonic(), points),
            "engine": {
                "model": self.options.profile.name,
                "speed": self.options.speed,
                "running": load.running,
                "waiting": load.waiting,
                "kv_use": load.kv_use,
                "preemptions": load.preemptions,
                "prompt_tokens": load.prompt_tokens,
                "generation_tokens": load.generation_tokens,
                "finished": load.finished,
            },
        }

    # What connections say.

    def head(self, exchange: Exchange) -> None:
        """A request's head is here."""
        if exchange.path == _CHAT and exchange.method == "POST":
            self._chats.arrived(exchange)

    def request(self, exchange: Exchange) -> None:
        """Answer a request, now or later."""
        path = exchange.path.partition("?")[0] if exchange.path != _CHAT else _CHAT
        route = self._routes.get((exchange.method, path))
        if route is not None and (path != _CHAT or exchange.data is not None):
            route(exchange)
        elif any(path == known for _, known in self._routes):
            exchange.reply(405, b'{"detail":"Method Not Allowed"}')
        else:
            exchange.reply(404, b'{"detail":"Not Found"}')

    def gone(self, exchange: Exchange) -> None:
        """The client has closed the connection."""
        if exchange.data is not None:
            self._chats.gone(exchange)

    # Paths that are answered at once.

    def _models(self, exchange: Exchange) -> None:
        exchange.reply(200, bodies.models(self.options.profile, int(time.time())))

    def _health(self, exchange: Exchange) -> None:
        exchange.reply(503 if self._chats.out() else 200, b"")

    def _metrics(self, exchange: Exchange) -> None:
        exchange.reply(200, self._chats.metrics.text(), CONTENT_TYPE)

    def _tokenize(self, exchange: Exchange) -> None:
        try:
            body = read_json(exchange)
            messages = body.get("messages", [{"content": body.get("prompt", "")}])
            if not isinstance(messages, list):
                raise Refused(400, "messages: Input should be a valid list")
        except Refused as refusal:
            exchange.reply(refusal.status, bodies.error(refusal.status, refusal.message))
            return
        count = prompt_tokens(messages)
        length = self.options.profile.max_model_len
        told = {"count": count, "max_model_len": length, "tokens": list(range(count))}
        exchange.reply(200, orjson.dumps(told))

    def _abort(self, exchange: Exchange) -> None:
        try:
            wanted = read_json(exchange).get("request_ids")
        except Refused:
            wanted = None
        if not isinstance(wanted, list):
            exchange.reply(400, b'{"detail":"Missing \'request_ids\' in request body"}')
            return
        for name in wanted:
            self._chats.abort(str(name))
        exchange.reply(200, b"")

    def _stats(self, exchange: Exchange) -> None:
        asked = _query(exchange)
        try:
            points = int(asked.get("points", "200"))
            start = float(asked.get("from", "0"))
            end = float(asked.get("to", time.monotonic() - self.stats.started_at))
        except ValueError:
            exchange.reply(400, b'{"detail":"from, to and points are numbers"}')
            return
        told = self.snapshot(points)
        if "from" in asked or "to" in asked:
            told["between"] = {
                "mean": self.stats.mean(start, end),
                "max": self.stats.peak(start, end),
                "curve": self.stats.curve(start, end, points),
            }
        exchange.reply(200, orjson.dumps(told))

    def _reset(self, exchange: Exchange) -> None:
        self.stats.reset(time.monotonic())
        exchange.reply(200, b"{}")

    def _mark(self, exchange: Exchange) -> None:
        name = _query(exchange).get("name", "mark")
        self.stats.mark(name, time.monotonic())
        exchange.reply(200, orjson.dumps({name: self.stats.marks[name]}))

    def _go_wrong(self, exchange: Exchange) -> None:
        try:
            self._chats.go_wrong(read_json(exchange))
        except (Refused, UsageError) as problem:
            exchange.reply(400, bodies.error(400, str(problem)))
        else:
            exchange.reply(200, b"{}")

    def _sweep(self) -> None:
        """Close what has been idle too long, as vLLM's server does."""
        loop = asyncio.get_running_loop()
        before = loop.time() - self.options.keep_alive_s
        for connection in list(self._connections):
            if connection.idle_since is not None and connection.idle_since < before:
                connection.close()
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)


def _query(exchange: Exchange) -> dict[str, str]:
    """The query of a path, the first of each name."""
    return {name: values[0] for name, values in parse_qs(urlsplit(exchange.path).query).items()}
