"""From the JSON of a reply to a `Reply` or a `Failure`; pure functions.

Fields as vLLM 0.32 and llama.cpp's server send them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from fanout import Failure, Kind, Reply, Usage

#: Characters of a reply kept in a record.
RAW_LIMIT = 16_000


def read_body(raw: bytes) -> dict[str, Any]:
    """The reply's JSON object.

    Raises:
        Failure: `server`, when it is cut, no JSON, or no object.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Failure(Kind.SERVER, f"the reply is not JSON: {error}", raw=_cut(raw)) from None
    if not isinstance(body, dict):
        raise Failure(Kind.SERVER, "the reply is not a JSON object", raw=_cut(raw))
    return body


def error_message(raw: bytes) -> str:
    """The server's own words in the body of an error, in whichever of the usual shapes."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _cut(raw).strip()[:500] or "no reason given"
    for key in ("error", "detail", "message"):
        found = body.get(key) if isinstance(body, dict) else None
        if isinstance(found, dict):
            found = found.get("message")
        if found:
            return str(found)[:500]
    return _cut(raw)[:500]


def usage_of(body: Mapping[str, Any]) -> Usage:
    """Token counts; what the server does not say is 0."""
    usage = _dict(body.get("usage"))
    return Usage(
        prompt=_int(usage.get("prompt_tokens")),
        completion=_int(usage.get("completion_tokens")),
        reasoning=_int(_dict(usage.get("completion_tokens_details")).get("reasoning_tokens")),
        cached=_int(_dict(usage.get("prompt_tokens_details")).get("cached_tokens")),
    )


def server_ttft_s(body: Mapping[str, Any]) -> float | None:
    """Seconds to the first token as the server tells: vLLM's `metrics`, llama.cpp's `timings`."""
    metrics = _dict(body.get("metrics"))
    milliseconds = metrics.get("time_to_first_token_ms")
    if milliseconds is None:
        # llama.cpp starts a request at once when a slot is free: prompt time is the first token's.
        milliseconds = _dict(body.get("timings")).get("prompt_ms")
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None


def reply_of(body: Mapping[str, Any], total_s: float, ttft_s: float | None = None) -> Reply:
    """The model's answer.

    Args:
        body: a chat completion, whole.
        total_s: seconds that the request was in flight.
        ttft_s: measured time to the first token; the server's own when None.

    Raises:
        Failure: the reply holds no answer; its kind says why.
    """
    if body.get("error"):  # some servers and proxies answer 200 with an error inside
        raise Failure(Kind.SERVER, error_message(orjson.dumps(body)), raw=_cut(orjson.dumps(body)))
    choices = body.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise Failure(Kind.SERVER, "the reply has no choices", raw=_cut(orjson.dumps(body)))
    choice = choices[0]
    message = _dict(choice.get("message"))
    content = message.get("content")
    content = content if isinstance(content, str) else ""
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    finish = choice.get("finish_reason")
    model = body.get("model")
    usage = usage_of(body)
    if failure := _failure_of(content, reasoning, finish, usage):
        raise failure
    return Reply(
        content=content,
        finish_reason=finish if isinstance(finish, str) else None,
        usage=usage,
        model=model if isinstance(model, str) else None,
        total_s=total_s,
        ttft_s=ttft_s if ttft_s is not None else server_ttft_s(body),
        reasoning=reasoning if isinstance(reasoning, str) else None,
    )


def _failure_of(content: str, reasoning: Any, finish: Any, usage: Usage) -> Failure | None:
    blank = not content.strip()
    raw = content[:RAW_LIMIT] or (str(reasoning)[:RAW_LIMIT] if reasoning else None)
    failure: Failure | None = None
    if finish == "length":
        # Cut while it was still thinking, or after thinking away most of the budget.
        thought = (blank and reasoning) or 2 * usage.reasoning > usage.completion > 0
        failure = (
            Failure(Kind.REASONING, "the budget of tokens went into reasoning", raw=raw)
            if thought
            else Failure(Kind.TRUNCATED, "the reply was cut at max_tokens", raw=raw)
        )
    elif finish == "abort":
        failure = Failure(Kind.SERVER, "the server aborted the request", raw=raw)
    elif blank:
        failure = Failure(Kind.EMPTY, f"the reply is empty (finish_reason {finish})", raw=raw)
    if failure:
        failure.usage = usage
    return failure


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _cut(raw: bytes) -> str:
    return raw[:RAW_LIMIT].decode("utf-8", "replace")
