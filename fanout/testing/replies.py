"""The bodies that a fake chat endpoint sends: as vLLM writes them, plain and streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from fanout.testing.faults import Completion
from fanout.wire import Usage


def models(names: Sequence[str]) -> bytes:
    """The body of `/v1/models`."""
    listed = [{"id": name, "object": "model", "owned_by": "fanout"} for name in names]
    return orjson.dumps({"object": "list", "data": listed})


def completion_of(answer: str | Mapping[str, Any] | Completion) -> Completion:
    """What the model says, from the short forms in which a test may write it."""
    if isinstance(answer, Completion):
        return answer
    return Completion(answer if isinstance(answer, str) else orjson.dumps(answer).decode())


def plain(said: Completion, request: Mapping[str, Any], identity: str) -> bytes:
    """A whole `chat.completion`."""
    message = {"role": "assistant", "content": said.content}
    if said.reasoning is not None:
        message[said.reasoning_field] = said.reasoning
    choice = {"index": 0, "message": message, "finish_reason": said.finish_reason}
    return orjson.dumps(
        {
            **_head(request, identity, "chat.completion"),
            "choices": [choice],
            "usage": _usage(said, request),
        }
    )


def streamed(said: Completion, request: Mapping[str, Any], identity: str) -> Iterator[bytes]:
    """The server-sent events of a streamed reply, a word an event; the last is `[DONE]`."""
    head = _head(request, identity, "chat.completion.chunk")

    def event(delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _event({**head, "choices": [choice]})

    yield event({"role": "assistant", "content": ""})
    for word in _words(said.reasoning):
        yield event({said.reasoning_field: word})
    for word in _words(said.content):
        yield event({"content": word})
    yield event({}, said.finish_reason)
    if (request.get("stream_options") or {}).get("include_usage"):
        yield _event({**head, "choices": [], "usage": _usage(said, request)})
    yield b"data: [DONE]\n\n"


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def _head(request: Mapping[str, Any], identity: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{identity}",
        "object": kind,
        "created": 0,
        "model": request.get("model"),
    }


def _usage(said: Completion, request: Mapping[str, Any]) -> dict[str, Any]:
    usage = said.usage or _counted(said, request)
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _counted(said: Completion, request: Mapping[str, Any]) -> Usage:
    asked = " ".join(str(turn.get("content")) for turn in request.get("messages", ()))
    reasoning = len(_words(said.reasoning))
    return Usage(
        prompt=len(_words(asked)),
        completion=len(_words(said.content)) + reasoning,
        reasoning=reasoning,
    )


def _words(text: str | None) -> list[str]:
    """The text cut before each word, so that the pieces joined are the text."""
    return re.findall(r"\s*\S+|\s+$", text or "")
