"""What is changed in a request that has failed, so that the next try can go better."""

from __future__ import annotations

from dataclasses import replace

from fanout import ChatRequest, Endpoint, Failure, Kind
from fanout.timeouts import largest

#: Efforts at which a model reasons too little for a lower one to help.
_LEAST_EFFORT = ("none", "minimal", "low")


def mended(
    first: ChatRequest,
    current: ChatRequest,
    failure: Failure,
    endpoint: Endpoint,
    room: int | None = None,
) -> ChatRequest:
    """The request to send after `failure`.

    Args:
        first: the item's request as the task kind built it.
        current: the request that failed.
        failure: how.
        endpoint: where.
        room: tokens of prompt and reply together that the model there has room for, if known.

    Raises:
        Failure: `failure`, when it was the budget and there is no room for a larger one.
    """
    match failure.kind:
        case Kind.TRUNCATED if failure.finish_reason != "length":
            return current  # cut for another reason than its length: more room is no help
        case Kind.REASONING if _effort(current, endpoint) not in _LEAST_EFFORT:
            return replace(current, reasoning_effort="low")
        case Kind.TRUNCATED | Kind.REASONING:
            return replace(current, max_tokens=_larger(current, failure, endpoint, room))
        case Kind.SCHEMA:
            asked = first.asking_again(failure.raw or "", failure.message)
            return replace(
                asked, max_tokens=current.max_tokens, reasoning_effort=current.reasoning_effort
            )
        case _:
            return current


def _effort(request: ChatRequest, endpoint: Endpoint) -> str | None:
    return request.reasoning_effort or endpoint.reasoning_effort


def _larger(current: ChatRequest, failure: Failure, endpoint: Endpoint, room: int | None) -> int:
    """Twice the budget, or as much of it as the model and timeout_s have room for."""
    budget = 2 * current.max_tokens
    limits: list[str] = []
    if room is not None and failure.usage is not None and failure.usage.prompt:
        left = room - failure.usage.prompt
        if left < budget:
            budget = left
            limits.append(
                f"the model has room for {room} tokens, {failure.usage.prompt} of them the prompt"
            )
    allowed = largest(endpoint.min_tokens_per_s, endpoint.timeout_s)
    if allowed is not None and allowed < budget:
        budget = allowed
        limits.append(f"timeout_s = {endpoint.timeout_s:g} allows {allowed}")
    if budget <= current.max_tokens:
        failure.message += f"; there is no larger budget: {', '.join(limits)}"
        raise failure
    return budget
