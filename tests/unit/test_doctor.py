"""The doctor against servers that lie, are ill, or serve something else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest

from fanout import Endpoint
from fanout.doctor import Finding, worst
from fanout.doctor.endpoint import EndpointCheck
from fanout.doctor.redis import redis_findings

GOOD = '{"code": "qz-7731-violet", "rows": 58}'

Answer = Callable[[httpx.Request], httpx.Response]


def completion(content: str | None, finish: str = "stop", tokens: int = 20) -> httpx.Response:
    message = {"role": "assistant", "content": content}
    body = {
        "choices": [{"message": message, "finish_reason": finish}],
        "usage": {"completion_tokens": tokens},
    }
    return httpx.Response(200, json=body)


class Server:
    """A model server with one model; each path's answer can be replaced."""

    def __init__(self, answers: Mapping[str, httpx.Response | Answer] | None = None) -> None:
        entry = {"id": "gpt-oss", "max_model_len": 8192}
        self.answers: dict[str, httpx.Response | Answer] = {
            "/health": httpx.Response(200),
            "/v1/models": httpx.Response(200, json={"data": [entry]}),
            "/v1/chat/completions": completion(GOOD),
            **(answers or {}),
        }
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.get(request.url.path, httpx.Response(404))
        return answer(request) if callable(answer) else answer

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(r.content) for r in self.requests if r.method == "POST"]


def look(server: Answer, max_tokens: int = 1024, **endpoint: Any) -> dict[str, Finding]:
    """Findings on one endpoint, by check."""

    async def run() -> list[Finding]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(server)) as client:
            target = Endpoint(**{"url": "http://spark:8000", "name": "spark", **endpoint})
            return await EndpointCheck(target, client, max_tokens).run()

    found = asyncio.run(run())
    assert all(finding.subject == "endpoint spark" for finding in found)
    assert len({finding.check for finding in found}) == len(found)
    return {finding.check: finding for finding in found}


def levels(found: dict[str, Finding]) -> dict[str, str]:
    return {check: finding.level for check, finding in found.items()}


def test_a_good_server_is_found_good() -> None:
    server = Server()
    found = look(server, concurrency=64, api_key="s3cret", reasoning_effort="low")
    assert levels(found) == {
        "timeout": "ok",
        "health": "ok",
        "model": "ok",
        "context": "ok",
        "speed": "ok",
        "structured output": "ok",
    }
    assert "1024 tokens / 2 tokens/s x 1.5 + 60 s = 828 s at N = 64" in found["timeout"].text
    assert "7,168 for the prompt" in found["context"].text
    assert "20 tokens in" in found["speed"].text
    (body,) = server.bodies
    assert body["model"] == "gpt-oss"
    assert body["max_tokens"] == 64
    assert body["reasoning_effort"] == "low"
    assert body["response_format"]["json_schema"]["strict"] is True
    assert {r.headers["authorization"] for r in server.requests} == {"Bearer s3cret"}
    assert not any("s3cret" in finding.text for finding in found.values())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Hello there, how are you?", "not JSON"),
        ('{"greeting": "hello"}', "'code' is a required property"),
        ('{"code": "hello", "rows": 58}', "'hello' is not one of"),
        ('{"code": "qz-7731-violet", "rows": 58, "x": 1}', "Additional properties"),
        ('```json\n{"code": "qz-7731-violet", "rows": 58}\n```', "not JSON"),
        ("", "not JSON"),
    ],
)
def test_a_server_that_ignores_the_schema_is_found_out(content: str, said: str) -> None:
    found = look(Server({"/v1/chat/completions": completion(content)}))
    assert found["structured output"].level == "fail"
    assert said in found["structured output"].text


def test_a_reply_cut_in_its_middle_is_no_proof() -> None:
    server = Server({"/v1/chat/completions": completion('{"code":          ', "length", 64)})
    assert look(server)["structured output"].level == "fail"


def test_a_model_that_thinks_its_budget_away_gets_a_larger_one() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if json.loads(request.content)["max_tokens"] == 64:
            return completion(None, "length", 64)
        return completion(GOOD, tokens=300)

    server = Server({"/v1/chat/completions": answer})
    assert look(server)["structured output"].level == "ok"
    assert [body["max_tokens"] for body in server.bodies] == [64, 512]


def test_a_model_that_only_thinks_is_not_called_a_liar() -> None:
    found = look(Server({"/v1/chat/completions": completion(None, "length", 64)}))
    assert found["structured output"].level == "warn"
    assert "reasoning_effort" in found["structured output"].text


def test_a_refused_schema_is_said_in_the_servers_words() -> None:
    refused = httpx.Response(400, json={"error": {"message": "response_format: unsupported"}})
    found = look(Server({"/v1/chat/completions": refused}))
    assert found["structured output"].level == "fail"
    assert "unsupported" in found["structured output"].text


def test_another_model_than_the_wanted_is_named() -> None:
    found = look(Server(), model="qwen3")
    assert found["model"].level == "fail"
    assert "qwen3 is not served; the server has gpt-oss" in found["model"].text
    assert "structured output" not in found


def test_several_models_need_a_name() -> None:
    both = httpx.Response(200, json={"data": [{"id": "a"}, {"id": "b"}]})
    found = look(Server({"/v1/models": both}))
    assert found["model"].level == "fail"
    assert "a, b" in found["model"].text
    assert look(Server({"/v1/models": both}), model="b")["model"].level == "ok"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": null}', b'{"data": [1, {}]}'])
def test_a_strange_list_of_models_is_a_finding(body: bytes) -> None:
    found = look(Server({"/v1/models": httpx.Response(200, content=body)}))
    assert found["model"].level == "fail"


def test_a_refused_key_is_said() -> None:
    found = look(Server({"/v1/models": httpx.Response(401, json={"error": "no"})}), api_key="x1")
    assert "refuses the API key" in found["model"].text


def test_a_missing_key_file_is_said(tmp_path: Any) -> None:
    found = look(Server(), api_key_file=tmp_path / "none")
    assert levels(found) == {"timeout": "ok", "api key": "fail"}


def test_a_dead_engine_ends_the_examination() -> None:
    server = Server({"/health": httpx.Response(503, text="engine is dead")})
    found = look(server)
    assert levels(found) == {"timeout": "ok", "health": "fail"}
    assert "503: engine is dead" in found["health"].text
    assert len(server.requests) == 1


def test_a_server_without_health_is_examined_further() -> None:
    found = look(Server({"/health": httpx.Response(404)}))
    assert found["health"].level == "warn"
    assert found["structured output"].level == "ok"


def test_an_absent_server_is_said_without_its_password() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    found = look(refuse, url="http://user:hunter2@spark:8000/v1")
    assert levels(found) == {"timeout": "ok", "health": "fail"}
    assert "http://spark:8000 does not answer: connection refused" in found["health"].text


def test_a_server_that_stays_silent_is_said() -> None:
    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("", request=request)

    found = look(Server({"/v1/chat/completions": silent}))
    assert "no reply in 108 s" in found["structured output"].text


def test_a_timeout_shorter_than_the_work_fails_with_the_arithmetic() -> None:
    found = look(Server(), timeout_s=180, min_tokens_per_s=3.6)
    assert found["timeout"].level == "fail"
    assert "1024 tokens / 3.6 tokens/s x 1.5 + 60 s = 487 s" in found["timeout"].text
    assert look(Server(), timeout_s=600, min_tokens_per_s=3.6)["timeout"].level == "ok"


def test_a_context_without_room_for_the_reply_fails() -> None:
    assert look(Server(), max_tokens=8192)["context"].level == "fail"
    assert look(Server(), max_tokens=8191)["context"].level == "ok"


def test_llama_cpp_tells_its_context_and_slots() -> None:
    models = httpx.Response(200, json={"data": [{"id": "m", "meta": {"n_ctx_train": 8192}}]})
    props = {"total_slots": 16, "default_generation_settings": {"n_ctx": 2048}}
    server = Server({"/v1/models": models, "/props": httpx.Response(200, json=props)})
    found = look(server, concurrency=64)
    assert found["context"].text.startswith("2,048 tokens")
    assert found["concurrency"].level == "warn"
    assert "16 requests at once" in found["concurrency"].text
    assert "concurrency" not in look(server, concurrency=16)
    bare = Server({"/v1/models": models})
    assert look(bare)["context"].text.startswith("8,192 tokens")


def test_a_server_that_counts_no_tokens_is_said() -> None:
    bare = httpx.Response(200, json={"choices": [{"message": {"content": GOOD}}]})
    found = look(Server({"/v1/chat/completions": bare}))
    assert found["speed"].level == "warn"
    assert found["structured output"].level == "ok"


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{}]}, {"choices": "x"}])
def test_a_reply_without_choices_is_a_finding(body: dict[str, Any]) -> None:
    found = look(Server({"/v1/chat/completions": httpx.Response(200, json=body)}))
    assert found["structured output"].level == "fail"


SOUND = {
    "valkey_version": "9.1.0",
    "redis_version": "7.2.4",
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "maxmemory_policy": "noeviction",
    "maxmemory": 0,
    "used_memory": 3 * 2**20,
    "role": "master",
    "cluster_enabled": 0,
}


def redis_look(**changes: Any) -> dict[str, Finding]:
    info = {name: value for name, value in {**SOUND, **changes}.items() if value is not None}
    return {finding.check: finding for finding in redis_findings(info)}


def test_a_sound_redis_is_found_sound() -> None:
    found = redis_look()
    assert worst(found.values()) == "ok"
    assert found["server"].text == "Valkey 9.1.0"


@pytest.mark.parametrize(
    ("changes", "check", "level"),
    [
        ({"valkey_version": None, "redis_version": "7.4.1"}, "server", "ok"),
        ({"valkey_version": None, "redis_version": "6.2.14"}, "server", "fail"),
        ({"valkey_version": None, "redis_version": None}, "server", "fail"),
        ({"aof_enabled": 0}, "persistence", "warn"),
        ({"aof_last_write_status": "err"}, "persistence", "fail"),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 2**30}, "eviction", "fail"),
        ({"maxmemory_policy": "allkeys-lru"}, "eviction", "warn"),
        ({"maxmemory_policy": "volatile-ttl", "maxmemory": 2**30}, "eviction", "warn"),
        ({"maxmemory": 2**30, "used_memory": 2**29}, "memory", "ok"),
        ({"maxmemory": 2**30, "used_memory": 2**30 - 1}, "memory", "warn"),
        ({"cluster_enabled": 1}, "topology", "fail"),
        ({"role": "slave"}, "topology", "fail"),
    ],
)
def test_what_a_redis_can_lose_is_said(changes: dict[str, Any], check: str, level: str) -> None:
    assert redis_look(**changes)[check].level == level


def test_the_worst_level_counts() -> None:
    def finding(level: Any) -> Finding:
        return Finding("s", "c", level, "t")

    assert worst([]) == "ok"
    assert worst([finding("ok"), finding("warn")]) == "warn"
    assert worst([finding("fail"), finding("warn")]) == "fail"
