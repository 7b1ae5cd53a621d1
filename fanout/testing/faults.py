"""The ways in which a chat request goes wrong, each under its name.

    from fanout.testing import FakeEndpoint, faults

    FakeEndpoint([faults.RESET, faults.rate_limited(retry_after=2), "the answer"])

A fault carries the failure `kind` that a client has to make of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import orjson

from fanout.failures import Kind
from fanout.wire import Usage


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model says in one reply.

    Attributes:
        content: the answer; None as servers give it when there is none.
        reasoning: the chain of thought.
        finish_reason: why the model ended: stop, length, abort.
        usage: tokens; counted as words when None.
        reasoning_field: key of the reasoning: `reasoning` (vLLM) or `reasoning_content`
            (llama.cpp, older vLLM).
    """

    content: str | None
    reasoning: str | None = None
    finish_reason: str = "stop"
    usage: Usage | None = None
    reasoning_field: str = "reasoning"


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to go wrong.

    Attributes:
        name: for test ids and messages.
        kind: what the failure has to be called.
        raises: the connection fails with this before a byte of the reply.
        hangs: no reply until the endpoint's `release`, or until the client gives up.
        status: HTTP status.
        headers: of the response.
        body: the whole body; an error object in OpenAI's form when None.
        says: a reply in proper form that is no good; then `status` is 200.
        ends_early: half of the body comes, then the connection is closed in good order.
        breaks: half of the body comes, then the connection dies.
    """

    name: str
    kind: Kind
    raises: type[httpx.TransportError] | None = None
    hangs: bool = False
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    says: Completion | None = None
    ends_early: bool = False
    breaks: bool = False


def _error(name: str, kind: Kind, status: int, message: str, retry_after: object = None) -> Fault:
    headers = () if retry_after is None else (("retry-after", str(retry_after)),)
    error = {"message": message, "type": name, "param": None, "code": status}
    return Fault(name, kind, None, False, status, headers, orjson.dumps({"error": error}))


def rate_limited(retry_after: float | str | None = None) -> Fault:
    """429; `retry_after` in seconds, or as an HTTP date."""
    return _error("rate_limited", Kind.OVERLOAD, 429, "Rate limit reached", retry_after)


def unavailable(retry_after: float | str | None = None) -> Fault:
    """503, as vLLM with a bounded queue answers when the queue is full."""
    return _error("unavailable", Kind.OVERLOAD, 503, "The queue is full", retry_after)


def overloaded(retry_after: float | str | None = None) -> Fault:
    """529, Anthropic's overload."""
    return _error("overloaded", Kind.OVERLOAD, 529, "Overloaded", retry_after)


def refused_request(status: int, message: str) -> Fault:
    """A 4xx that no retry mends, in the server's words."""
    return _error(f"refused_request_{status}", Kind.REQUEST, status, message)


def not_the_schema(content: str = '{"unexpected": true}') -> Fault:
    """A proper reply that a task kind has to refuse."""
    return Fault("not_the_schema", Kind.SCHEMA, says=Completion(content))


#: Nobody listens there.
CONNECTION_REFUSED = Fault("connection_refused", Kind.CONNECT, raises=httpx.ConnectError)
#: The connection dies before a byte of the reply, as a kept-alive one does that the server closed.
RESET = Fault("reset", Kind.CONNECT, raises=httpx.RemoteProtocolError)
RATE_LIMITED = rate_limited()
UNAVAILABLE = unavailable()
OVERLOADED = overloaded()
#: No reply until `release`; then an answer that is too late.
HANG = Fault("hang", Kind.TIMEOUT, hangs=True, says=Completion("too late"))
SERVER_ERROR = _error("server_error", Kind.SERVER, 500, "EngineCore died")
BAD_GATEWAY = Fault("bad_gateway", Kind.SERVER, status=502, body=b"<html>502 Bad Gateway</html>")
GATEWAY_TIMEOUT = Fault("gateway_timeout", Kind.SERVER, status=504, body=b"")
#: The body ends half way, in good order: cut JSON, or a stream without its end.
CUT_BODY = Fault("cut_body", Kind.SERVER, says=Completion("half a reply"), ends_early=True)
#: The connection dies in the middle of the body.
BROKEN_BODY = Fault("broken_body", Kind.SERVER, says=Completion("half a reply"), breaks=True)
#: 200 with an error inside, as some proxies answer.
ERROR_IN_200 = Fault(
    "error_in_200", Kind.SERVER, body=b'{"error":{"message":"upstream failed","code":500}}'
)
#: The same with the code of an overload.
OVERLOADED_IN_200 = Fault(
    "overloaded_in_200", Kind.OVERLOAD, body=b'{"error":{"message":"queue full","code":"503"}}'
)
#: The same in the form of older servers, without a code.
PLAIN_ERROR_IN_200 = Fault(
    "plain_error_in_200", Kind.SERVER, body=b'{"object":"error","message":"EngineCore died"}'
)
NOT_JSON = Fault("not_json", Kind.SERVER, body=b"<html>It works!</html>")
BAD_REQUEST = refused_request(400, "Invalid value for 'temperature'")
#: In vLLM's words.
PROMPT_TOO_LONG = _error(
    "prompt_too_long",
    Kind.REQUEST,
    400,
    "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens in "
    "the messages, Please reduce the length of the messages.",
)
NOT_FOUND = refused_request(404, "The model `nothing` does not exist.")
TOO_LARGE = refused_request(413, "Request entity too large")
UNPROCESSABLE = refused_request(422, "Unprocessable entity")
TRUNCATED = Fault(
    "truncated", Kind.TRUNCATED, says=Completion('{"title": "The first', finish_reason="length")
)
#: Cut while the model was still thinking; vLLM's field.
REASONING = Fault(
    "reasoning",
    Kind.REASONING,
    says=Completion(None, "First I have to consider", "length", Usage(completion=4, reasoning=4)),
)
#: The same with llama.cpp's field, and without a count of reasoning tokens.
REASONING_CONTENT = Fault(
    "reasoning_content",
    Kind.REASONING,
    says=Completion(None, "First I", "length", Usage(completion=2), "reasoning_content"),
)
#: Most of the budget thought away, and the answer cut.
REASONING_THEN_CUT = Fault(
    "reasoning_then_cut",
    Kind.REASONING,
    says=Completion('{"ti', "So the", "length", Usage(completion=10, reasoning=8)),
)
#: Null content with stop.
EMPTY = Fault("empty", Kind.EMPTY, says=Completion(None))
BLANK = Fault("blank", Kind.EMPTY, says=Completion(" \n\t "))
#: vLLM's finish_reason for a request that the engine gave up.
ABORTED = Fault("aborted", Kind.SERVER, says=Completion("half a", finish_reason="abort"))
#: vLLM's finish_reason for a model that repeats itself.
REPEATING = Fault(
    "repeating", Kind.TRUNCATED, says=Completion("and and and", finish_reason="repetition")
)
NOT_THE_SCHEMA = not_the_schema()

#: Every fault that has no parameters.
ALL: tuple[Fault, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Fault)
)
