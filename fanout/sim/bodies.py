"""The bodies that the server sends: as vLLM 0.32 writes them, plain and streamed."""

from __future__ import annotations

from typing import Any

import orjson

from fanout.sim.answers import Answer
from fanout.sim.curves import Profile

_ERRORS = {400: "BadRequestError", 404: "NotFoundError", 503: "ServiceUnavailableError"}


def error(status: int, message: str) -> bytes:
    """An error object."""
    kind = _ERRORS.get(status, "InternalServerError")
    return orjson.dumps(
        {"error": {"message": message, "type": kind, "param": None, "code": status}}
    )


def models(profile: Profile, created: int) -> bytes:
    """The body of `/v1/models`."""
    model = {
        "id": profile.name,
        "object": "model",
        "created": created,
        "owned_by": "fanout-sim",
        "root": profile.name,
        "parent": None,
        "max_model_len": profile.max_model_len,
    }
    return orjson.dumps({"object": "list", "data": [model]})


def usage(prompt: int, completion: int, reasoning: int) -> dict[str, Any]:
    """Token counts."""
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": None,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def completion(
    head: tuple[str, str, int],
    message: tuple[str | None, str | None],
    finish_reason: str,
    counts: dict[str, Any],
    metrics: dict[str, float] | None,
) -> bytes:
    """A whole `chat.completion`.

    Args:
        head: its id, the model, and when it was asked for in seconds since 1970.
        message: the answer and the chain of thought.
        finish_reason: stop, length or abort.
        counts: `usage`.
        metrics: vLLM's per-request metrics.
    """
    identity, model, created = head
    content, reasoning = message
    body = {
        "id": identity,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": content,
                    "refusal": None,
                    "tool_calls": [],
                    "reasoning": reasoning,
                },
                "logprobs": None,
                "finish_reason": finish_reason,
                "stop_reason": None,
            }
        ],
        "usage": counts,
    }
    if metrics is not None:
        body["metrics"] = metrics
    return orjson.dumps(body)


class Stream:
    """Server-sent events of one streamed answer, token by token.

    Args:
        identity: id of the completion.
        model: name of the model.
        created: seconds since 1970.
        answer: what is said.
    """

    def __init__(self, identity: str, model: str, created: int, answer: Answer) -> None:
        self._head = orjson.dumps(
            {
                "id": identity,
                "object": "chat.completion.chunk",
                "created": created,
                "model": model,
            }
        )[:-1]
        self._answer = answer
        self._reasoning = answer.reasoning() or ""
        self._content = answer.content() or ""
        self.sent = 0

    def opening(self) -> bytes:
        """The first event, which says who speaks."""
        return self._event(b'{"role":"assistant","content":""}')

    def upto(self, tokens: int, most_events: int) -> bytes:
        """Events for the tokens since the last call; several tokens in one where there are many."""
        new = tokens - self.sent
        if new <= 0:
            return b""
        step = -(-new // most_events)
        events = []
        while self.sent < tokens:
            first, self.sent = self.sent, min(tokens, self.sent + step)
            events.append(self._tokens(first, self.sent))
        return b"".join(events)

    def closing(
        self,
        finish_reason: str,
        counts: dict[str, Any] | None,
        metrics: dict[str, float] | None,
    ) -> bytes:
        """The last events: why it ended, the counts if they are wanted, and `[DONE]`."""
        end = self._event(b"{}", orjson.dumps(finish_reason))
        if counts is not None:
            tail: dict[str, Any] = {"choices": [], "usage": counts}
            if metrics is not None:
                tail["metrics"] = metrics
            end += b"data: " + self._head + b"," + orjson.dumps(tail)[1:] + b"\n\n"
        return end + b"data: [DONE]\n\n"

    def _tokens(self, first: int, last: int) -> bytes:
        thought = self._answer.reasoning_tokens
        events = b""
        if first < thought:
            text = piece(self._reasoning, thought, first, min(last, thought))
            if text:
                events = self._event(b'{"reasoning":' + orjson.dumps(text) + b"}")
        if last > thought:
            said = self._answer.content_tokens
            text = piece(self._content, said, max(first, thought) - thought, last - thought)
            events += self._event(b'{"content":' + orjson.dumps(text) + b"}")
        return events

    def _event(self, delta: bytes, finish_reason: bytes = b"null") -> bytes:
        return b"".join(
            (
                b"data: ",
                self._head,
                b',"choices":[{"index":0,"delta":',
                delta,
                b',"logprobs":null,"finish_reason":',
                finish_reason,
                b"}]}\n\n",
            )
        )


def piece(text: str, tokens: int, first: int, last: int) -> str:
    """The part of the text that these tokens are, when all of it is `tokens`."""
    return text[len(text) * first // tokens : len(text) * last // tokens]
