"""The model client over the connections that workers have, against a server that misbehaves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from fanout import ChatRequest, Endpoint, Failure, Kind, Message
from fanout_workers.model import ModelClient, open_transport

pytestmark = pytest.mark.anyio

REQUEST = ChatRequest(messages=(Message(role="user", content="é"),), max_tokens=50)
REPLY = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "model": "m"}
CHUNK = b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\n'

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def client_of(handler: Handler) -> AsyncIterator[ModelClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        transport = open_transport()
        endpoint = Endpoint(name="s", url=str(server.make_url("/")), model="m", api_key="key")
        try:
            yield ModelClient(endpoint, transport)
        finally:
            await transport.aclose()


async def failure_of(handler: Handler) -> Failure:
    async with client_of(handler) as client:
        with pytest.raises(Failure) as caught:
            await client.complete(REQUEST)
    return caught.value


async def test_a_request_and_its_reply() -> None:
    seen: list[tuple[str, str, object, Mapping[str, str]]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.method, request.path, await request.json(), request.headers))
        return web.json_response(REPLY)

    async with client_of(handler) as client:
        reply = await client.complete(REQUEST, "the-id")
    assert (reply.content, reply.model) == ("hi", "m")
    ((method, path, body, headers),) = seen
    assert (method, path) == ("POST", "/v1/chat/completions")
    assert isinstance(body, dict)
    assert body["messages"] == [{"role": "user", "content": "é"}]
    assert headers["Authorization"] == "Bearer key"
    assert headers["x-request-id"] == "the-id"
    assert headers["content-type"] == "application/json"


async def test_a_compressed_reply() -> None:
    async def handler(request: web.Request) -> web.Response:
        response = web.json_response(REPLY)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with client_of(handler) as client:
        assert (await client.complete(REQUEST)).content == "hi"


async def test_a_streamed_reply() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in (CHUNK[:10], CHUNK[10:]):
            await response.write(piece)
        await response.write(b"data: [DONE]\n\n")
        return response

    async with client_of(handler) as client:
        reply = await client.complete(REQUEST)
    assert reply.content == "hi"
    assert reply.ttft_s is not None


async def test_a_status_and_its_words() -> None:
    async def handler(request: web.Request) -> web.Response:
        error = {"error": {"message": "too many"}}
        return web.json_response(error, status=503, headers={"Retry-After": "7"})

    failure = await failure_of(handler)
    assert (failure.kind, failure.status, failure.retry_after) == (Kind.OVERLOAD, 503, 7.0)
    assert failure.message == "HTTP 503: too many"


async def test_a_redirect_is_not_followed() -> None:
    async def handler(request: web.Request) -> web.Response:
        raise web.HTTPFound("http://user:secret@other:81/elsewhere?key=secret")

    failure = await failure_of(handler)
    assert (failure.kind, failure.status) == (Kind.REQUEST, 302)
    assert failure.message == (
        "HTTP 302: a redirect to http://other:81/elsewhere, which is not followed: "
        "set the endpoint's url"
    )
    assert failure.is_endpoints  # its URL is wrong: items wait


async def test_a_reply_that_breaks_off() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices"')
        assert request.transport is not None
        request.transport.close()
        return response

    failure = await failure_of(handler)
    assert failure.kind is Kind.SERVER
    assert failure.message.startswith("the reply broke off: ")


async def test_a_connection_that_is_closed_before_the_reply() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    failure = await failure_of(handler)
    assert (failure.kind, failure.hung_up) == (Kind.CONNECT, True)


async def test_a_port_that_nobody_listens_on() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    transport = open_transport()
    client = ModelClient(Endpoint(url=f"http://127.0.0.1:{port}", model="m"), transport)
    with pytest.raises(Failure, match=rf"connect: 127\.0\.0\.1:{port}: ") as caught:
        await client.complete(REQUEST)
    assert (caught.value.kind, caught.value.hung_up) == (Kind.CONNECT, False)
    await transport.aclose()


async def test_a_request_that_is_given_up_is_aborted_at_the_server() -> None:
    begun, aborted = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            aborted.set()  # the test's server cancels what nobody waits for any more
        return web.Response()

    async with client_of(handler) as client:
        asking = asyncio.create_task(client.complete(REQUEST))
        await begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(10):
            await aborted.wait()


async def test_the_same_connections_serve_httpx() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="vllm:num_requests_running 3")

    async with (
        client_of(handler) as client,
        httpx.AsyncClient(transport=client._transport) as plain,
    ):
        assert "running 3" in (await plain.get(f"{client.endpoint.root}/metrics")).text


async def test_a_connection_is_used_again_once_the_reply_is_read() -> None:
    peers: list[object] = []

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        return web.json_response(REPLY, status=503 if len(peers) == 2 else 200)

    async with client_of(handler) as client:
        await client.complete(REQUEST)
        with pytest.raises(Failure):
            await client.complete(REQUEST)
        await client.complete(REQUEST)
    assert len(peers) == 3
    assert len(set(peers)) == 1


async def test_a_header_cannot_begin_another_one() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(REPLY)

    async with client_of(handler) as client:
        for text in ("a\r\nx-evil: 1", "a\nx-evil: 1", "a\rb", "a\0b"):
            with pytest.raises(ValueError, match="a header holds"):
                await client.complete(REQUEST, text)
        assert (await client.complete(REQUEST, "fine")).content == "hi"


async def test_credentials_in_the_url_are_sent() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.json_response(REPLY)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    async with TestServer(app) as server:
        url = str(server.make_url("/")).replace("//", "//user:secret@", 1)
        transport = open_transport()
        try:
            await ModelClient(Endpoint(name="s", url=url, model="m"), transport).complete(REQUEST)
        finally:
            await transport.aclose()
    assert seen == ["Basic dXNlcjpzZWNyZXQ="]


async def test_what_is_no_http_is_a_failure() -> None:
    answered = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        answered.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport = open_transport()
    client = ModelClient(Endpoint(url=f"http://127.0.0.1:{port}", model="m"), transport)
    with pytest.raises(Failure) as caught:
        await client.complete(REQUEST)
    assert (caught.value.kind, caught.value.hung_up) == (Kind.SERVER, False)
    await transport.aclose()
    async with asyncio.timeout(10):
        await answered.wait()
    server.close()
