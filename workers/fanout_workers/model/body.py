"""The body of a chat request, in the words of OpenAI's API as vLLM 0.32 and llama.cpp read it."""

from __future__ import annotations

from typing import Any

from fanout import ChatRequest, Endpoint


def body_of(request: ChatRequest, endpoint: Endpoint, model: str) -> dict[str, Any]:
    """The JSON body for `endpoint`; what the request says goes before the endpoint's settings."""
    body: dict[str, Any] = {
        "model": model,
        "messages": list(request.messages),
        "max_tokens": request.max_tokens,
    }
    if request.schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": request.schema_name,
                "schema": request.schema,
                "strict": True,
            },
        }
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if effort := request.reasoning_effort or endpoint.reasoning_effort:
        body["reasoning_effort"] = effort
    if endpoint.stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return {**body, **endpoint.extra, **request.extra}
