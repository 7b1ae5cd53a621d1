"""The model client over a fake endpoint: every way to fail has its kind."""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import aiohttp
import httpx
import httpx_aiohttp  # noqa: F401 - its error classes have to be known too
import pytest

from fanout import ChatRequest, ConfigError, Endpoint, Failure, Kind, Message, Reply, Usage
from fanout.testing import Completion, FakeEndpoint, Fault, faults
from fanout.timeouts import Timeout
from fanout_workers.model import ModelClient, client

pytestmark = pytest.mark.anyio

REQUEST = ChatRequest(messages=(Message(role="user", content="one two three"),), max_tokens=50)
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


def client_of(transport: httpx.AsyncBaseTransport, **settings: Any) -> ModelClient:
    given = {"name": "spark", "url": "http://spark:8000", "model": "m", **settings}
    return ModelClient(Endpoint(**given), transport)


async def ask(transport: httpx.AsyncBaseTransport, **settings: Any) -> Reply:
    return await client_of(transport, **settings).complete(REQUEST)


async def failure_of(transport: httpx.AsyncBaseTransport, **settings: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        await ask(transport, **settings)
    return caught.value


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "derive", lambda *numbers: Timeout(50, 2.0, 0.01))


@STREAMED
async def test_a_reply(stream: bool) -> None:
    said = Completion("the answer", "well", usage=Usage(prompt=9, completion=4, reasoning=1))
    endpoint = FakeEndpoint([said])
    reply = await ask(endpoint, stream=stream)
    assert (reply.content, reply.reasoning, reply.finish_reason) == ("the answer", "well", "stop")
    assert (reply.usage, reply.model) == (said.usage, "m")
    assert reply.total_s >= 0
    assert (reply.ttft_s is not None) is stream
    assert (endpoint.in_flight, endpoint.in_flight_max) == (0, 1)


async def test_the_server_s_own_time_to_first_token() -> None:
    choices = [{"message": {"content": "x"}, "finish_reason": "stop"}]
    for own in ({"metrics": {"time_to_first_token_ms": 250}}, {"timings": {"prompt_ms": 250}}):
        reply = await ask(FakeEndpoint([{"choices": choices, **own}]))
        assert reply.ttft_s == 0.25


@STREAMED
@pytest.mark.parametrize("content", ["a\nb\n\n  c ", "data: [DONE]\n\ndata: {}", "é\u2028\r\n😀"])
async def test_the_content_comes_as_it_was_sent(stream: bool, content: str) -> None:
    assert (await ask(FakeEndpoint([content]), stream=stream)).content == content


async def test_what_is_sent() -> None:
    endpoint = FakeEndpoint()
    request = replace(
        REQUEST, schema={"type": "object"}, schema_name="posting", temperature=0.5, extra={"k": 1}
    )
    spark = client_of(
        endpoint, api_key="sesame", reasoning_effort="low", stream=True, extra={"seed": 7, "k": 2}
    )
    await spark.complete(request, "job-1")
    sent = endpoint.requests[0]
    assert sent.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "one two three"}],
        "max_tokens": 50,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "posting", "schema": {"type": "object"}, "strict": True},
        },
        "temperature": 0.5,
        "reasoning_effort": "low",
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 7,
        "k": 1,
    }
    assert sent.headers["authorization"] == "Bearer sesame"
    assert sent.headers["x-request-id"] == "job-1"
    assert sent.headers["content-type"] == "application/json"


async def test_what_is_not_set_is_not_sent() -> None:
    endpoint = FakeEndpoint()
    await ask(endpoint)
    assert set(endpoint.requests[0].body) == {"model", "messages", "max_tokens"}
    assert not {"authorization", "x-request-id"} & set(endpoint.requests[0].headers)


async def test_the_request_s_effort_goes_before_the_endpoint_s() -> None:
    endpoint = FakeEndpoint()
    await client_of(endpoint, reasoning_effort="high").complete(
        replace(REQUEST, reasoning_effort="low")
    )
    assert endpoint.requests[0].body["reasoning_effort"] == "low"


@STREAMED
@pytest.mark.parametrize(
    "fault", [f for f in faults.ALL if f.kind is not Kind.SCHEMA], ids=lambda fault: fault.name
)
@pytest.mark.usefixtures("no_patience")
async def test_every_fault_has_its_kind(fault: Fault, stream: bool) -> None:
    endpoint = FakeEndpoint([fault])
    failure = await failure_of(endpoint, stream=stream)
    assert failure.kind is fault.kind
    assert failure.message
    in_body = {faults.ERROR_IN_200: 500, faults.OVERLOADED_IN_200: 503}.get(fault)
    assert failure.status == (fault.status if fault.status != 200 else in_body)
    assert (len(endpoint.requests), endpoint.in_flight) == (1, 0)


def test_the_faults_cover_every_kind_of_one_request() -> None:
    assert {fault.kind for fault in faults.ALL} == set(Kind) - {Kind.POISON}


@STREAMED
async def test_a_reply_that_is_not_the_schema_is_for_the_task_kind_to_refuse(stream: bool) -> None:
    reply = await ask(FakeEndpoint([faults.NOT_THE_SCHEMA]), stream=stream)
    assert reply.content == '{"unexpected": true}'


@STREAMED
async def test_the_model_s_last_words_and_tokens_are_kept(stream: bool) -> None:
    failure = await failure_of(FakeEndpoint([faults.TRUNCATED]), stream=stream)
    assert failure.raw == '{"title": "The first'
    assert failure.usage == Usage(prompt=3, completion=3)
    failure = await failure_of(FakeEndpoint([faults.REASONING]), stream=stream)
    assert failure.raw == "First I have to consider"
    assert failure.usage == Usage(completion=4, reasoning=4)


async def test_a_cut_stream_keeps_what_came() -> None:
    failure = await failure_of(FakeEndpoint([faults.CUT_BODY]), stream=True)
    assert (failure.message, failure.raw) == ("the stream ended before the reply did", "half a")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faults.PROMPT_TOO_LONG, "HTTP 400: This model's maximum context length is 8192"),
        (faults.BAD_GATEWAY, "HTTP 502: <html>502 Bad Gateway</html>"),
        (faults.GATEWAY_TIMEOUT, "HTTP 504: no reason given"),
        (faults.ERROR_IN_200, "an error in a reply of 200: upstream failed"),
        (faults.PLAIN_ERROR_IN_200, "an error in a reply of 200: EngineCore died"),
        (faults.NOT_JSON, "the reply is a web page, no JSON: <html>It works!</html>"),
        (replace(faults.BAD_REQUEST, body=b'{"error":"as a string"}'), "HTTP 400: as a string"),
        (replace(faults.BAD_REQUEST, body=b'{"detail":"Not Found"}'), "HTTP 400: Not Found"),
        (replace(faults.BAD_REQUEST, body=b'["x"]'), 'HTTP 400: ["x"]'),
        (faults.CONNECTION_REFUSED, "spark:8000: injected: connection_refused"),
        (faults.BROKEN_BODY, "the reply broke off: injected: broken_body"),
    ],
)
async def test_the_server_s_own_words(fault: Fault, words: str) -> None:
    assert (await failure_of(FakeEndpoint([fault]))).message.startswith(words)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("2", 2.0), ("0.5", 0.5), ("-1", 0.0), ("soon", None), ("", None)],
)
async def test_retry_after_as_a_number(header: str | None, seconds: float | None) -> None:
    assert (await failure_of(FakeEndpoint([faults.rate_limited(header)]))).retry_after == seconds


async def test_retry_after_as_a_date() -> None:
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    failure = await failure_of(FakeEndpoint([faults.unavailable(later)]))
    assert failure.retry_after == pytest.approx(100, abs=30)
    past = await failure_of(FakeEndpoint([faults.overloaded("Mon, 01 Jan 2001 00:00:00 GMT")]))
    assert past.retry_after == 0.0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": ["x"]}',
        b'{"choices": {"message": 1}}',
        b"\xff\xfe",
    ],
)
async def test_a_body_of_another_form_is_the_server_s_fault(body: bytes) -> None:
    failure = await failure_of(FakeEndpoint([Fault("form", Kind.SERVER, body=body)]))
    assert failure.kind is Kind.SERVER


@pytest.mark.parametrize("content", [None, 5, ["x"], {"text": "x"}])
async def test_a_content_of_another_type_is_empty(content: Any) -> None:
    choice = {"message": {"content": content}, "finish_reason": "stop"}
    failure = await failure_of(FakeEndpoint([{"choices": [choice]}]))
    assert failure.kind is Kind.EMPTY


async def test_odd_values_beside_the_content_do_no_harm() -> None:
    choice = {"message": {"content": "x", "reasoning": 5}, "finish_reason": 7}
    odd = {"choices": [choice], "model": 3, "usage": {"prompt_tokens": "9"}, "metrics": []}
    reply = await ask(FakeEndpoint([odd]))
    assert (reply.content, reply.model, reply.finish_reason, reply.usage) == (
        "x",
        None,
        None,
        Usage(),
    )


class Raw(httpx.AsyncBaseTransport):
    """Answers 200 with a body in the given pieces; an exception among them is raised."""

    def __init__(self, *pieces: bytes | BaseException, kind: str = "text/event-stream") -> None:
        self.pieces = pieces
        self.kind = kind

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": self.kind}, content=self._body())

    async def _body(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


EVENT = b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\n'


async def test_a_stream_cut_anywhere_into_pieces() -> None:
    whole = b": comment\r\nevent: x\n" + EVENT.replace(b"\n", b"\r\n") + b"data:[DONE]\n\n"
    for at in range(len(whole)):
        assert (await ask(Raw(whole[:at], whole[at:]))).content == "hi"


@pytest.mark.parametrize(
    "event",
    [b"data: {\n", b"data: 5\n", b"data: []\n", b'data: {"error": {"message": "boom"}}\n'],
)
async def test_a_broken_chunk_of_a_stream_is_the_server_s_fault(event: bytes) -> None:
    assert (await failure_of(Raw(event, EVENT))).kind is Kind.SERVER


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices": 5}\n',
        b'data: {"choices": [5]}\n',
        b'data: {"choices": [{"delta": 5}]}\n',
        b'data: {"choices": [{"delta": {"content": 5}}]}\n',
    ],
)
async def test_a_chunk_without_content_is_passed_over(event: bytes) -> None:
    assert (await ask(Raw(event, EVENT))).content == "hi"


async def test_a_reply_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MAX_REPLY_BYTES", 100)
    failure = await failure_of(Raw(*[b"x" * 60] * 3, kind="application/json"))
    assert (failure.kind, failure.message) == (
        Kind.SERVER,
        "the reply is longer than 100 bytes",
    )


@pytest.mark.usefixtures("no_patience")
async def test_a_timeout_aborts_the_request_and_shows_the_arithmetic() -> None:
    endpoint = FakeEndpoint([faults.HANG])
    failure = await failure_of(endpoint)
    assert failure.kind is Kind.TIMEOUT
    assert "50 tokens / 2 tokens/s" in failure.message
    assert (endpoint.aborted, endpoint.in_flight) == (1, 0)


async def test_a_cancelled_request_is_aborted_at_the_server() -> None:
    endpoint = FakeEndpoint()
    endpoint.hold()
    asking = asyncio.create_task(ask(endpoint))
    await endpoint.reached(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (endpoint.aborted, endpoint.in_flight) == (1, 0)


async def test_a_timeout_shorter_than_the_work_is_refused_before_anything_is_sent() -> None:
    endpoint = FakeEndpoint()
    with pytest.raises(ConfigError, match="would kill requests that are still running"):
        await ask(endpoint, timeout_s=5)
    assert endpoint.requests == []


async def test_the_only_model_of_a_server_is_asked_for_once() -> None:
    endpoint = FakeEndpoint(models=["only"])
    nameless = client_of(endpoint, model=None)
    replies = await asyncio.gather(*(nameless.complete(REQUEST) for _ in range(3)))
    assert [reply.model for reply in replies] == ["only"] * 3
    endpoint.outage = faults.CONNECTION_REFUSED
    assert await nameless._model_name() == "only"


@pytest.mark.parametrize(
    ("models", "words"), [([], "serves no model"), (["a", "b"], "serves a, b: name one")]
)
async def test_a_model_has_to_be_named_unless_there_is_one(models: list[str], words: str) -> None:
    failure = await failure_of(FakeEndpoint(models=models), model=None)
    assert failure.kind is Kind.REQUEST
    assert words in failure.message


async def test_a_server_that_is_away_is_asked_for_its_model_again() -> None:
    endpoint = FakeEndpoint()
    endpoint.outage = faults.CONNECTION_REFUSED
    nameless = client_of(endpoint, model=None)
    with pytest.raises(Failure) as caught:
        await nameless.complete(REQUEST)
    assert caught.value.kind is Kind.CONNECT
    endpoint.outage = None
    assert (await nameless.complete(REQUEST)).model == "fake"


async def test_a_server_that_never_lists_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MODELS_S", 0.01)
    endpoint = FakeEndpoint()
    endpoint.outage = faults.HANG
    assert (await failure_of(endpoint, model=None)).kind is Kind.TIMEOUT


@pytest.mark.parametrize("body", [b"{}", b'{"data": 5}', b'{"data": {"id": "x"}}'])
async def test_a_list_of_models_in_another_form(body: bytes) -> None:
    endpoint = FakeEndpoint()
    endpoint.outage = Fault("form", Kind.SERVER, body=body)
    assert (await failure_of(endpoint, model=None)).kind is Kind.SERVER


def test_secrets_are_not_shown() -> None:
    spark = client_of(FakeEndpoint(), api_key="sesame")
    assert "sesame" not in f"{spark!r} {spark.endpoint!r} {spark.endpoint}"


def subclasses(of: type[Exception]) -> Iterator[type[Exception]]:
    for found in of.__subclasses__():
        yield found
        yield from subclasses(found)


#: Every error of the two HTTP libraries by name, so that one in a new version is noticed here.
KNOWN = {
    # httpx
    "CloseError", "ConnectError", "ConnectTimeout", "LocalProtocolError", "NetworkError",
    "PoolTimeout", "ProtocolError", "ProxyError", "ReadError", "ReadTimeout",
    "RemoteProtocolError", "TimeoutException", "UnsupportedProtocol", "WriteError", "WriteTimeout",
    # aiohttp
    "ClientConnectionError", "ClientConnectionResetError", "ClientConnectorCertificateError",
    "ClientConnectorDNSError", "ClientConnectorError", "ClientConnectorSSLError",
    "ClientHttpProxyError", "ClientOSError", "ClientPayloadError", "ClientProxyConnectionError",
    "ClientResponseError", "ClientSSLError", "ConnectionTimeoutError", "ContentTypeError",
    "InvalidURL", "InvalidUrlClientError", "InvalidUrlRedirectClientError",
    "NonHttpUrlClientError", "NonHttpUrlRedirectClientError", "RedirectClientError",
    "ServerConnectionError", "ServerDisconnectedError", "ServerFingerprintMismatch",
    "ServerTimeoutError", "SocketTimeoutError", "TooManyRedirects", "UnixClientConnectorError",
    "UploadAbortedError", "WSServerHandshakeError",
}  # fmt: skip
#: Those that no waiting mends.
HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, aiohttp.InvalidURL)
NO_HTTP = (aiohttp.ClientPayloadError, aiohttp.ClientResponseError)
ERRORS = sorted(
    {
        error
        for root in (httpx.TransportError, aiohttp.ClientError)
        for error in subclasses(root)
        if error.__module__.split(".")[0] in {"httpx", "aiohttp", "httpx_aiohttp"}
    },
    key=lambda error: (error.__module__, error.__name__),
)
EACH_ERROR = pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)


def instance_of(error: type[Exception]) -> Exception:
    """An instance without what the class wants for its text, such as a connection's address."""
    said = {"__init__": lambda self: None, "__str__": lambda self: ""}
    made: Exception = type(error.__name__, (error,), said)()
    return made


class Failing(httpx.AsyncBaseTransport):
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise self.error


def test_no_error_of_the_http_libraries_is_new() -> None:
    assert {error.__name__ for error in ERRORS} <= KNOWN


@EACH_ERROR
async def test_every_error_before_the_reply_is_a_failure(error: type[Exception]) -> None:
    failure = await failure_of(Failing(instance_of(error)))
    no_reply = Kind.SERVER if issubclass(error, NO_HTTP) else Kind.CONNECT
    assert failure.kind is (Kind.REQUEST if issubclass(error, HOPELESS) else no_reply)
    assert failure.message == f"spark:8000: {error.__name__}"


@EACH_ERROR
@STREAMED
async def test_every_error_in_the_reply_is_a_failure(error: type[Exception], stream: bool) -> None:
    kind = "text/event-stream" if stream else "application/json"
    failure = await failure_of(Raw(b"{", instance_of(error), kind=kind), stream=stream)
    assert failure.kind is Kind.SERVER
    assert failure.message == f"the reply broke off: {error.__name__}"


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset"), BrokenPipeError(), OSError()]
)
async def test_the_system_s_own_errors_are_failures(error: OSError) -> None:
    assert (await failure_of(Failing(error))).kind is Kind.CONNECT
    assert (await failure_of(Raw(b"{", error))).kind is Kind.SERVER
