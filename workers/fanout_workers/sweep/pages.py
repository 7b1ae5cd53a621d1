"""What else a model server offers beside its chat API: /metrics, /tokenize, connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import orjson

from fanout import Endpoint, Message
from fanout.aio import ended
from fanout.server_metrics import ServerLoad, read_server_metrics
from fanout.sweep.point import Server

_ANSWER_S = 10.0


class Pages:
    """Asks one server for other things than completions; no answer is no error.

    Args:
        endpoint: the server.
        transport: connections, the same that completions use.
        model: the model's name, for /tokenize.
    """

    def __init__(
        self, endpoint: Endpoint, transport: httpx.AsyncBaseTransport, model: str | None
    ) -> None:
        key = endpoint.key()
        self._root = endpoint.root
        self._url = endpoint.url
        self._model = model
        # Never closed: the transport is somebody else's.
        self._client = httpx.AsyncClient(
            transport=transport,
            trust_env=False,
            timeout=_ANSWER_S,
            headers={"authorization": f"Bearer {key}"} if key else {},
        )

    async def load(self) -> ServerLoad | None:
        """What its /metrics say now; None if it has none."""
        response = await self._ask("GET", f"{self._root}/metrics")
        return read_server_metrics(response.text) if response is not None else None

    async def token_count(self, messages: Sequence[Message]) -> int | None:
        """Tokens of a prompt with the chat template, as vLLM's /tokenize counts them."""
        body = {"model": self._model, "messages": list(messages), "add_generation_prompt": True}
        response = await self._ask("POST", f"{self._root}/tokenize", body)
        if response is None:
            return None
        try:
            counted = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            return None
        # llama.cpp's takes `content` and gives no count: it would not know the template.
        count = counted.get("count") if isinstance(counted, dict) else None
        return count if isinstance(count, int) and count > 0 else None

    async def connect(self, connections: int) -> None:
        """Open so many connections, that requests sent at once need not wait for theirs."""
        await asyncio.gather(*(self._ask("GET", f"{self._url}/models") for _ in range(connections)))

    async def _ask(self, method: str, url: str, body: Any = None) -> httpx.Response | None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                response = await self._client.request(method, url, json=body)
        except (TimeoutError, httpx.HTTPError, OSError):
            return None
        return response if response.status_code == 200 else None


class Watch:
    """Reads a server's load again and again for as long as the block lasts.

    Args:
        pages: the server.
        every_s: seconds between two readings.
        seen: called with each reading.
    """

    def __init__(
        self, pages: Pages, every_s: float, seen: Callable[[ServerLoad], object] = lambda _: None
    ) -> None:
        self._pages = pages
        self._every_s = every_s
        self._seen = seen
        self._readings: list[ServerLoad] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._watch(), name="server metrics")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await ended(self._task)

    def clear(self) -> None:
        """Forget what was read, but for the last reading."""
        del self._readings[:-1]

    def summary(self) -> Server | None:
        """What was read, or None if the server does not say."""
        return summary_of(self._readings)

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            load = await self._pages.load()
            if load is None and not self._readings:
                return  # it has no such page
            if load is not None:
                self._readings.append(load)
                self._seen(load)
            await asyncio.sleep(max(self._every_s - (time.monotonic() - began), self._every_s / 2))


def summary_of(readings: Sequence[ServerLoad]) -> Server | None:
    """Means and maxima of readings; the growth of what is counted from the server's start."""
    if not readings:
        return None
    running = [load.running for load in readings if load.running is not None]
    waiting = [load.waiting for load in readings if load.waiting is not None]
    kv = [load.kv for load in readings if load.kv is not None]
    thrown = [load.preemptions for load in readings if load.preemptions is not None]
    return Server(
        running_mean=_mean(running),
        running_max=max(running, default=None),
        waiting_mean=_mean(waiting),
        waiting_max=max(waiting, default=None),
        kv_mean=_mean(kv),
        kv_max=max(kv, default=None),
        preemptions=round(thrown[-1] - thrown[0]) if thrown else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
