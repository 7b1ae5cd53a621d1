"""The fake endpoint itself, as a user's tests would use it: with httpx's own client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from fanout.testing import Completion, FakeEndpoint, faults

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "one two"}]}


def http(endpoint: FakeEndpoint) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=endpoint, base_url="http://fake")


async def chat(endpoint: FakeEndpoint, **more: Any) -> httpx.Response:
    async with http(endpoint) as client:
        return await client.post("/v1/chat/completions", json={**BODY, **more})


async def test_models_and_health() -> None:
    endpoint = FakeEndpoint(models=["a", "b"])
    async with http(endpoint) as client:
        models = (await client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["a", "b"]
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/elsewhere")).status_code == 404
        endpoint.outage = faults.UNAVAILABLE
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/v1/models")).status_code == 503
    assert endpoint.requests == []


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        ("text", "text"),
        ({"a": 1}, '{"a":1}'),
        (Completion("said"), "said"),
        ({"choices": [{"message": {"content": "whole"}}]}, "whole"),
    ],
)
async def test_the_forms_of_an_answer(answer: Any, content: str) -> None:
    body = (await chat(FakeEndpoint([answer]))).json()
    assert body["choices"][0]["message"]["content"] == content


async def test_a_function_answers_what_it_was_asked() -> None:
    endpoint = FakeEndpoint(lambda request: request["messages"][0]["content"][::-1])
    body = (await chat(endpoint)).json()
    assert body["choices"][0]["message"]["content"] == "owt eno"
    assert body["usage"]["prompt_tokens"] == 2
    assert endpoint.requests[0].body == BODY


async def test_a_script_that_is_too_short_fails_the_test() -> None:
    endpoint = FakeEndpoint(["only"])
    await chat(endpoint)
    with pytest.raises(AssertionError, match="only 1 answers are scripted"):
        await chat(endpoint)
    assert endpoint.in_flight == 0


async def test_a_stream_in_the_form_of_the_api() -> None:
    said = Completion("two words", "hm", reasoning_field="reasoning_content")
    response = await chat(FakeEndpoint([said]), stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "two"},
        {"content": " words"},
        {},
    ]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3


async def test_requests_are_held_and_released_in_their_order() -> None:
    endpoint = FakeEndpoint()
    endpoint.hold()
    asking = [asyncio.create_task(chat(endpoint)) for _ in range(4)]
    await endpoint.reached(4)
    endpoint.release(1)
    await endpoint.reached(3)
    await asking[0]
    assert not any(task.done() for task in asking[1:])
    asking[1].cancel()
    await endpoint.reached(2)
    endpoint.release()
    await endpoint.reached(0)
    await asyncio.gather(*asking[2:])
    await chat(endpoint)
    assert (endpoint.in_flight_max, endpoint.aborted, len(endpoint.requests)) == (4, 1, 5)


async def test_what_hangs_answers_when_released() -> None:
    endpoint = FakeEndpoint([faults.HANG])
    asking = asyncio.create_task(chat(endpoint))
    await endpoint.reached(1)
    endpoint.release()
    assert (await asking).json()["choices"][0]["message"]["content"] == "too late"


async def test_faults_carry_their_headers() -> None:
    response = await chat(FakeEndpoint([faults.rate_limited(retry_after=3)]))
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json()["error"]["message"] == "Rate limit reached"


def test_fault_names_are_unique() -> None:
    names = [fault.name for fault in faults.ALL]
    assert len(set(names)) == len(names)
