"""A fake OpenAI-compatible chat endpoint (the form of vLLM) on httpx's transport: no network."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx
import orjson

from fanout.testing import replies
from fanout.testing.faults import Completion, Fault

#: One reply: the answer as text; an object to answer as JSON, or a whole body if it has
#: `choices`; all that a model says; or a way to go wrong.
Answer: TypeAlias = str | dict[str, Any] | Completion | Fault


@dataclass(frozen=True, slots=True)
class Sent:
    """A chat request as it came: its JSON body, and its headers with names in lower case."""

    body: dict[str, Any]
    headers: dict[str, str]


class FakeEndpoint(httpx.AsyncBaseTransport):
    """A model server that answers what the test says.

        endpoint = FakeEndpoint(lambda request: {"title": request["messages"][-1]["content"]})
        endpoint = FakeEndpoint([faults.RESET, "second time lucky"])

    It serves `/v1/chat/completions`, plain and streamed, `/v1/models` and `/health`. Nothing in it
    takes time; to hold requests in flight use `hold`, `reached` and `release`.

    Args:
        reply: makes the answer from the request's JSON, or the answers in their order. A request
            after the last of them is an AssertionError.
        models: names that `/v1/models` lists.

    Attributes:
        requests: every chat request so far.
        in_flight: chat requests whose reply has not been taken to its end.
        in_flight_max: the most there have been.
        aborted: chat requests that the client gave up before the reply.
        outage: while set, every request to any path meets this.
    """

    def __init__(
        self,
        reply: Callable[[dict[str, Any]], Answer] | Sequence[Answer] = lambda request: "ok",
        models: Sequence[str] = ("fake",),
    ) -> None:
        self._reply = reply if callable(reply) else _in_order(reply)
        self._models = models
        self._held = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._watchers: list[tuple[int, asyncio.Future[None]]] = []
        self.requests: list[Sent] = []
        self.in_flight = 0
        self.in_flight_max = 0
        self.aborted = 0
        self.outage: Fault | None = None

    def hold(self) -> None:
        """Let every chat request from now on wait for `release`."""
        self._held = True

    def release(self, count: int | None = None) -> None:
        """Answer the `count` longest held requests; without it all of them and all that follow."""
        if count is None:
            self._held = False
        waiting = [turn for turn in self._waiting if not turn.done()]
        for turn in waiting[:count]:
            turn.set_result(None)

    async def reached(self, in_flight: int) -> None:
        """Wait until exactly that many chat requests are in flight."""
        if self.in_flight == in_flight:
            return
        watcher = in_flight, asyncio.get_running_loop().create_future()
        self._watchers.append(watcher)
        try:
            await watcher[1]
        finally:
            self._watchers.remove(watcher)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Serve one request; httpx's seam, called by the client under test."""
        if request.url.path == "/v1/chat/completions" and request.method == "POST":
            return await self._chat(request)
        if self.outage is not None:
            return await self._failing(self.outage, request, {})
        if request.url.path == "/v1/models":
            return _plain(replies.models(self._models))
        if request.url.path == "/health":
            return _plain(b"")
        return _plain(b'{"detail":"Not Found"}', 404)

    async def _chat(self, request: httpx.Request) -> httpx.Response:
        body = orjson.loads(await request.aread())
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Sent(body, headers))
        self._count(+1)
        try:
            answer = self.outage or self._reply(body)
            if self._held and not (isinstance(answer, Fault) and answer.hangs):
                await self._turn()
            if isinstance(answer, Fault):
                response = await self._failing(answer, request, body)
            else:
                response = _answered(answer, request, body)
        except BaseException as error:
            self.aborted += isinstance(error, asyncio.CancelledError)
            self._count(-1)
            raise
        response.extensions["body"].at_end = lambda: self._count(-1)
        return response

    async def _failing(
        self, fault: Fault, request: httpx.Request, body: dict[str, Any]
    ) -> httpx.Response:
        if fault.hangs:
            await self._turn()
        if fault.raises is not None:
            raise fault.raises(f"injected: {fault.name}", request=request)
        if fault.says is not None:
            return _answered(fault.says, request, body, fault)
        return _plain(fault.body or b"", fault.status, dict(fault.headers))

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        finally:
            self._waiting.remove(turn)

    def _count(self, change: int) -> None:
        self.in_flight += change
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        for wanted, reached in self._watchers:
            if wanted == self.in_flight and not reached.done():
                reached.set_result(None)


class _Body(httpx.AsyncByteStream):
    """The chunks of a body; `error` is raised after them."""

    def __init__(self, chunks: Sequence[bytes], error: Exception | None = None) -> None:
        self._chunks = chunks
        self._error = error
        self.at_end: Callable[[], object] | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk
        if self._error is not None:
            raise self._error

    async def aclose(self) -> None:
        at_end, self.at_end = self.at_end, None
        if at_end is not None:
            at_end()


def _in_order(answers: Sequence[Answer]) -> Callable[[dict[str, Any]], Answer]:
    left = deque(answers)

    def reply(request: dict[str, Any]) -> Answer:
        if not left:
            raise AssertionError(f"only {len(answers)} answers are scripted, and one more is asked")
        return left.popleft()

    return reply


def _plain(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> httpx.Response:
    return _response(_Body([body]), status, {"content-type": "application/json", **(headers or {})})


def _response(body: _Body, status: int, headers: dict[str, str]) -> httpx.Response:
    return httpx.Response(status, headers=headers, stream=body, extensions={"body": body})


def _answered(
    answer: str | dict[str, Any] | Completion,
    request: httpx.Request,
    body: dict[str, Any],
    fault: Fault | None = None,
) -> httpx.Response:
    if isinstance(answer, dict) and "choices" in answer:
        return _plain(orjson.dumps(answer))
    said = replies.completion_of(answer)
    identity = request.headers.get("x-request-id", "0")
    streamed = bool(body.get("stream"))
    if streamed:
        chunks = list(replies.streamed(said, body, identity))
    else:
        whole = replies.plain(said, body, identity)
        chunks = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    error: Exception | None = None
    if fault and (fault.ends_early or fault.breaks):
        chunks = chunks[: len(chunks) // 2]
        if fault.breaks:
            error = httpx.ReadError(f"injected: {fault.name}", request=request)
    kind = "text/event-stream; charset=utf-8" if streamed else "application/json"
    return _response(_Body(chunks, error), 200, {"content-type": kind})
