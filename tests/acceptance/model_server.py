"""A model server for acceptance tests: `python model_server.py PORT`.

It answers what its prompts ask for; a document that holds one of these words gets

    BROKEN      no JSON, each time
    MENDS       no JSON at first, the right answer once its mistake is shown to it
    EMPTY       null content
    THINKS      a budget spent on reasoning, unless reasoning_effort is low
    REFUSED     400
    SLOW        its answer after 50 ms
    EVIL        what would clear a terminal: in a finding of a review, or else instead of JSON
    HANGS       no answer until /release is asked for

`/stats` tells how many requests it had in flight at most, and how many it was asked in all;
`/asked?from=NUMBER` which documents, in the order in which they came, from that one on.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from aiohttp import web

MODEL = "acceptance-model"
CLEAR = "\x1b[2J\x1b]0;owned\x07"


def _value(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """The smallest instance of a JSON Schema, as far as the tests use it."""
    if "$ref" in schema:
        return _value(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {k: _value(v, root) for k, v in schema.get("properties", {}).items()}
        case "array":
            return [_value(schema["items"], root)] if "items" in schema else []
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case _:
            return "something"


def _reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    said = [message["content"] for message in body["messages"]]
    document = said[1] if len(said) > 1 else said[0]
    if "REFUSED" in document:
        return 400, {"error": {"message": "the prompt is refused", "code": 400}}
    message: dict[str, Any] = {"role": "assistant", "content": "an answer"}
    finish = "stop"
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    if schema:
        message["content"] = json.dumps(_value(schema, schema))
    if "BROKEN" in document or ("MENDS" in document and len(said) == 2):
        message["content"] = "this is no JSON"
    if "EVIL" in document:
        finding = {"line": 1, "severity": "note", "title": CLEAR, "detail": CLEAR + "\nx:1: error:"}
        reviews = schema is not None and "findings" in schema.get("properties", {})
        message["content"] = json.dumps({"findings": [finding]}) if reviews else CLEAR
    if "EMPTY" in document:
        message["content"] = None
    if "THINKS" in document and body.get("reasoning_effort") != "low":
        message |= {"content": "", "reasoning": "let me think " * 20}
        finish = "length"
    return 200, {
        "id": "chatcmpl-1",
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27},
        "metrics": {"time_to_first_token_ms": 12.0},
    }


_in_flight = {"now": 0, "max": 0, "asked": 0}
_documents: list[str] = []
_released = asyncio.Event()


async def _stats(_: web.Request) -> web.Response:
    return web.json_response(_in_flight)


async def _asked(request: web.Request) -> web.Response:
    return web.json_response(_documents[int(request.query["from"]) :])


async def _chat(request: web.Request) -> web.Response:
    _in_flight["now"] += 1
    _in_flight["asked"] += 1
    _in_flight["max"] = max(_in_flight["max"], _in_flight["now"])
    try:
        return await _answer(request)
    finally:
        _in_flight["now"] -= 1


async def _answer(request: web.Request) -> web.Response:
    body = await request.json()
    _documents.append(str(body["messages"][-1]["content"])[-200:])
    if "SLOW" in body["messages"][-1]["content"]:
        await asyncio.sleep(0.05)
    if "HANGS" in body["messages"][-1]["content"]:
        await _released.wait()
    if body["model"] != MODEL:
        return web.json_response({"error": {"message": "no such model"}}, status=404)
    status, reply = _reply(body)
    return web.json_response(reply, status=status)


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": MODEL, "max_model_len": 4096}]})


async def _release(_: web.Request) -> web.Response:
    _released.set()
    return web.Response()


async def _health(_: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", _chat)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/health", _health)
    app.router.add_get("/stats", _stats)
    app.router.add_get("/asked", _asked)
    app.router.add_get("/release", _release)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
