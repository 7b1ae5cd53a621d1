"""The table of failure kinds over real HTTP: how each ends an item, after how many requests."""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from fanout import (
    ChatRequest,
    Endpoint,
    Failure,
    Invalid,
    Item,
    JobSpec,
    Message,
    Record,
    Reply,
    Task,
)
from fanout.testing import MemoryStore
from fanout_workers.attempts import Asker, Effort
from fanout_workers.item import ItemRunner
from fanout_workers.jobs import Jobs
from fanout_workers.model import ModelClient, client, open_transport
from fanout_workers.permits import Permits

pytestmark = pytest.mark.anyio

#: Makes the response to one chat request from its body and its number, from 1.
Say = Callable[[web.Request, dict[str, Any], int], Awaitable[web.StreamResponse]]


class Titles(Task):
    """Wants an object with a title."""

    name = "titles"

    def requests(self, payload: Any) -> Sequence[ChatRequest]:
        return [ChatRequest(messages=(Message(role="user", content="Title?"),), max_tokens=100)]

    def validate(self, reply: Reply, payload: Any) -> Any:
        try:
            return json.loads(reply.content)["title"]
        except (ValueError, KeyError, TypeError):
            raise Invalid(f"no title in {reply.content[:50]}") from None


class Quick(Asker):
    """Makes no pauses but notes them; after each the endpoint seems well, whatever happened."""

    pauses: list[float]

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        for load in self._permits.loads():
            load.circuit.looked_at(None)
            if load.circuit.wants_canary:
                load.circuit.answered(load.circuit.begin())


class Bench:
    """A worker's inside in front of a server that says what the test says."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.bodies: list[dict[str, Any]] = []
        self.canaries = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "m", "max_model_len": 180}, {"id": "n"}]})
        body = await request.json()
        if body["messages"][-1]["content"] == "Say yes.":
            self.canaries += 1
            return completion("yes")
        self.bodies.append(body)
        return await self.say(request, body, len(self.bodies))

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        async with TestServer(app) as server:
            endpoint = Endpoint(name="s", url=str(server.make_url("/")), model="m", **settings)
            transport = open_transport()
            hours = itertools.count(step=3600.0)
            self.permits = Permits([endpoint], lambda: next(hours))
            model = ModelClient(endpoint, transport)
            await model.models()  # as a worker's look at the endpoint does
            self.asker = Quick(self.permits, {"s": model}, asyncio.Event())
            self.asker.pauses = []
            try:
                yield
            finally:
                await transport.aclose()

    async def run(self, **settings: Any) -> Record:
        """The record of one item."""
        store = MemoryStore()
        spec = JobSpec(kind="titles", tier="t")
        item = Item(id="a", payload={}, ordinal=0, job="j")
        await store.create("j", spec)
        await store.submit("j", spec, [item])
        async with self.running(**settings):
            jobs = Jobs(store, {"titles": Titles})
            record = await ItemRunner("t", store, jobs, self.asker).run("titles", item, {}, "req")
        assert self.permits.in_flight() == {"s": 0}
        return record

    def sent(self, key: str) -> list[Any]:
        return [body.get(key) for body in self.bodies]


def completion(
    content: str | None, finish: str = "stop", reasoning: str | None = None, thought: int = 0
) -> web.Response:
    message = {"role": "assistant", "content": content, "reasoning": reasoning}
    usage = {"prompt_tokens": 20, "completion_tokens": 10}
    usage |= {"completion_tokens_details": {"reasoning_tokens": thought}}  # type: ignore[dict-item]
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return web.json_response({"id": "x", "model": "m", "choices": [choice], "usage": usage})


def always(make: Callable[[], web.StreamResponse]) -> Say:
    async def say(request: web.Request, body: dict[str, Any], n: int) -> web.StreamResponse:
        return make()

    return say


def error(status: int, message: str, **headers: str) -> Say:
    return always(
        lambda: web.json_response({"error": {"message": message}}, status=status, headers=headers)
    )


def text(body: str, kind: str = "text/html") -> Say:
    return always(lambda: web.Response(text=body, content_type=kind))


async def cut(request: web.Request, body: dict[str, Any], n: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices"')
    assert request.transport is not None
    request.transport.close()
    return response


async def endless(request: web.Request, body: dict[str, Any], n: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"choices": [{"message": {"content": "')
    for _ in range(20 * 16):  # the client leaves meanwhile
        await response.write(b"x" * 2**16)
    raise AssertionError("all of it has been taken")


TOO_LONG = "This model's maximum context length is 180 tokens. However, you requested 200 tokens."


@pytest.mark.parametrize(
    ("say", "status", "kind", "requests", "tokens", "words"),
    [
        (error(500, "EngineCore died"), "failed", "server", 4, 0, "HTTP 500: EngineCore died"),
        (error(502, "Bad Gateway"), "failed", "server", 4, 0, "HTTP 502: Bad Gateway"),
        (error(504, "slow"), "failed", "server", 4, 0, "HTTP 504: slow"),
        (text("<html>It works</html>"), "failed", "server", 4, 0, "a web page, no JSON"),
        (text('{"choices": [', "application/json"), "failed", "server", 4, 0, "is not JSON"),
        (cut, "failed", "server", 4, 0, "the reply broke off"),
        (endless, "failed", "server", 4, 0, "longer than"),
        (
            text('{"error": {"message": "upstream", "code": 500}}', "application/json"),
            "failed", "server", 4, 0, "an error in a reply of 200: upstream",
        ),
        (
            text('{"error": {"message": "bad", "code": 400}}', "application/json"),
            "failed", "request", 1, 0, "an error in a reply of 200: bad",
        ),
        (always(lambda: completion("half", "abort")), "failed", "server", 4, 40, "aborted"),
        (error(400, TOO_LONG), "failed", "request", 1, 0, f"HTTP 400: {TOO_LONG}"),
        (error(413, "large"), "failed", "request", 1, 0, "HTTP 413: large"),
        (error(422, "odd"), "failed", "request", 1, 0, "HTTP 422: odd"),
        (always(lambda: completion('{"t', "length")), "invalid", "truncated", 2, 20, "max_tokens"),
        (always(lambda: completion("a a", "repetition")), "invalid", "truncated", 2, 20, "repet"),
        (
            always(lambda: completion(None, "length", "hm", 10)),
            "invalid", "reasoning", 3, 30, "10 of 10 tokens went into reasoning",
        ),
        (always(lambda: completion(None)), "invalid", "empty", 2, 20, "is empty"),
        (always(lambda: completion(" \n")), "invalid", "empty", 2, 20, "is empty"),
        (always(lambda: completion("{}")), "invalid", "schema", 3, 30, "no title in {}"),
    ],
)  # fmt: skip
async def test_how_an_item_ends(
    monkeypatch: pytest.MonkeyPatch,
    say: Say,
    status: str,
    kind: str,
    requests: int,
    tokens: int,
    words: str,
) -> None:
    monkeypatch.setattr(client, "_MAX_REPLY_BYTES", 2**20)
    bench = Bench(say)
    record = await bench.run()
    assert record.error is not None
    assert (record.status, record.error.kind) == (status, kind)
    assert words in record.error.message
    assert len(bench.bodies) == record.attempts == requests
    assert record.usage.completion == tokens
    assert bench.canaries == (kind == "server")


def then_good(first: Say, times: int) -> Say:
    async def say(request: web.Request, body: dict[str, Any], n: int) -> web.StreamResponse:
        return await first(request, body, n) if n <= times else completion('{"title": "yes"}')

    return say


@pytest.mark.parametrize(
    "refusal",
    [
        error(429, "wait"),
        error(503, "The queue is full"),
        error(529, "Overloaded"),
        error(401, "who are you"),
        error(403, "not you"),
        error(404, "The model `m` does not exist."),
        text('{"error": {"message": "full", "code": 503}}', "application/json"),
    ],
)
async def test_what_is_the_server_s_own_spends_no_attempt(refusal: Say) -> None:
    bench = Bench(then_good(refusal, 30))
    record = await bench.run()
    assert (record.status, record.attempts, record.data) == ("ok", 1, "yes")
    assert sum(record.retried.values()) == 30


@pytest.mark.parametrize("as_date", [False, True])
async def test_nobody_comes_back_before_the_server_s_time(as_date: bool) -> None:
    later = email.utils.formatdate(time.time() + 40, usegmt=True) if as_date else "40"
    bench = Bench(then_good(error(429, "wait", **{"Retry-After": later}), 1))
    assert (await bench.run()).status == "ok"
    assert 20 < bench.asker.pauses[0] <= 50  # a date counts from when it was written


async def test_a_wrong_model_names_those_that_there_are() -> None:
    bench = Bench(error(404, "The model `m` does not exist."))
    async with bench.running():
        with pytest.raises(Failure) as caught:
            await bench.asker._clients["s"].complete(Titles(None).requests(None)[0])
    assert caught.value.message == ("HTTP 404: The model `m` does not exist. (the server has m, n)")


async def test_a_larger_budget_fills_the_model_s_room_and_no_more() -> None:
    bench = Bench(always(lambda: completion('{"t', "length")))
    await bench.run()
    assert bench.sent("max_tokens") == [100, 160]  # 180 tokens of room, 20 of them the prompt


async def test_reasoning_gets_less_effort_and_then_more_room() -> None:
    bench = Bench(always(lambda: completion(None, "length", "hm", 10)))
    await bench.run()
    assert bench.sent("reasoning_effort") == [None, "low", "low"]
    assert bench.sent("max_tokens") == [100, 100, 160]


async def test_a_re_ask_does_not_grow() -> None:
    bench = Bench(always(lambda: completion('{"no": 1}')))
    await bench.run()
    assert [len(messages) for messages in bench.sent("messages")] == [1, 3, 3]


async def stalled(request: web.Request, body: dict[str, Any], n: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for word in ("{", '"t', "it"):
        chunk = {"choices": [{"delta": {"content": word}}]}
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    await asyncio.Event().wait()
    return response


async def test_a_stream_that_is_aborted_counts_what_came() -> None:
    bench = Bench(stalled)
    effort = Effort()
    async with bench.running(stream=True):
        request = Titles(None).requests(None)[0]
        asking = asyncio.create_task(
            bench.asker.ask(Titles(None), request, None, effort, "req"),
        )
        async with asyncio.timeout(20):
            while sum(flight.meter.chunks for flight in bench.asker._tallies["s"]._flights) < 3:
                await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert effort.usage.completion == 3
    assert bench.permits.in_flight() == {"s": 0}


async def test_a_stream_that_stalls_is_a_timeout_that_counts_what_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = client.derive
    monkeypatch.setattr("fanout.timeouts.PREFILL_S", 0.3)
    monkeypatch.setattr(client, "derive", lambda tokens, speed, wanted: real(tokens, 1000.0, None))
    bench = Bench(stalled)
    record = await bench.run(stream=True)
    assert record.error is not None
    assert (record.status, record.error.kind) == ("failed", "timeout")
    assert "the stream stopped after 3 pieces: no reply in" in record.error.message
    assert (record.attempts, record.usage.completion, bench.canaries) == (2, 6, 1)


async def test_ends_that_come_twice_in_a_stream_count_once() -> None:
    async def twice(request: web.Request, body: dict[str, Any], n: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for delta, finish in (({"content": '{"title": "a'}, None), ({}, "length"), ({}, "stop")):
            chunk = {"choices": [{"delta": delta, "finish_reason": finish}]}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    record = await Bench(twice).run(stream=True)
    assert record.error is not None
    assert record.error.kind == "truncated"
