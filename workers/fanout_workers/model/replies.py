"""From the JSON of a reply to a `Reply` or a `Failure`; pure functions.

Fields as vLLM 0.32 and llama.cpp's server send them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson

from fanout import Failure, Kind, Reply, Usage
from fanout.failures import kind_of_status

#: Characters of a reply kept in a record.
RAW_LIMIT = 16_000
#: Ends of a reply that is not whole although its budget was not spent: vLLM's for a model that
#: repeats itself, and a gateway's filter.
_CUT_SHORT = frozenset({"repetition", "content_filter"})


def read_body(raw: bytes) -> dict[str, Any]:
    """The reply's JSON object.

    Raises:
        Failure: `server`, when it is cut, no JSON, or no object.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        words = f"the reply is not JSON: {error}"
        if raw.lstrip()[:1] == b"<":
            words = f"the reply is a web page, no JSON: {_cut(raw).strip()[:200]}"
        raise Failure(Kind.SERVER, words, raw=_cut(raw)) from None
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


def error_in(body: Mapping[str, Any]) -> Failure | None:
    """The failure in a reply of 200 that holds an error, as some servers and proxies answer.

    Its code says the kind, as an HTTP status would; without one it is the server's.
    """
    error = body.get("error") or (body if body.get("object") == "error" else None)
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    with suppress(ValueError):
        code = int(str(code))
    status = code if isinstance(code, int) and 400 <= code <= 599 else None
    whole = orjson.dumps(body)
    return Failure(
        kind_of_status(status) if status else Kind.SERVER,
        f"an error in a reply of 200: {error_message(whole)}",
        status=status,
        raw=_cut(whole),
    )


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


def reply_of(
    body: Mapping[str, Any],
    total_s: float,
    ttft_s: float | None = None,
    budget: int | None = None,
) -> Reply:
    """The model's answer.

    Args:
        body: a chat completion, whole.
        total_s: seconds that the request was in flight.
        ttft_s: measured time to the first token; the server's own when None.
        budget: max_tokens of the request, for messages.

    Raises:
        Failure: the reply holds no answer; its kind says why.
    """
    if failure := error_in(body):
        raise failure
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
    if failure := _failure_of(content, reasoning, finish, usage, budget):
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


def _failure_of(
    content: str, reasoning: Any, finish: Any, usage: Usage, budget: int | None
) -> Failure | None:
    blank = not content.strip()
    raw = content[:RAW_LIMIT] or (str(reasoning)[:RAW_LIMIT] if reasoning else None)
    at = f"max_tokens = {budget}" if budget else "max_tokens"
    failure: Failure | None = None
    if finish == "length":
        # Cut while it was still thinking, or after thinking away most of the budget.
        thought = (blank and reasoning) or 2 * usage.reasoning > usage.completion > 0
        # Where the server has no parser for it, the thinking is in the content.
        thought = thought or (content.lstrip().startswith("<think>") and "</think>" not in content)
        failure = (
            Failure(Kind.REASONING, f"{_spent(usage)} went into reasoning ({at})", raw=raw)
            if thought
            else Failure(Kind.TRUNCATED, f"the reply was cut at {at}", raw=raw)
        )
    elif finish == "abort":
        failure = Failure(Kind.SERVER, "the server aborted the request", raw=raw)
    elif isinstance(finish, str) and finish in _CUT_SHORT:
        words = f"the server cut the reply short: finish_reason {finish}"
        failure = Failure(Kind.TRUNCATED, words, raw=raw)
    elif blank:
        failure = Failure(Kind.EMPTY, f"the reply is empty (finish_reason {finish})", raw=raw)
    if failure:
        failure.usage = usage
        failure.finish_reason = finish if isinstance(finish, str) else None
    return failure


def _spent(usage: Usage) -> str:
    if usage.reasoning:
        return f"{usage.reasoning} of {usage.completion} tokens"
    return f"all {usage.completion} tokens" if usage.completion else "the budget of tokens"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _cut(raw: bytes) -> str:
    return raw[:RAW_LIMIT].decode("utf-8", "replace")
