"""One model server: well, serving the model, roomy enough, and true to a JSON Schema."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httpx
import jsonschema
import orjson

from fanout.doctor.finding import Finding, Level, cut, words
from fanout.errors import ConfigError
from fanout.settings import Endpoint
from fanout.timeouts import derive, needed

#: Seconds for an answer that costs a server nothing.
QUICK_S = 10.0

#: No model says this by itself.
_PROBE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "enum": ["qz-7731-violet"]},
        "rows": {"type": "integer", "enum": [58]},
    },
    "required": ["code", "rows"],
    "additionalProperties": False,
}
_PROBE_PROMPT = "Say hello in one short sentence."
#: Tokens; the second try is for a model that thinks the first budget away.
_PROBE_BUDGETS = (64, 512)


class _Broken(Exception):
    """A request to an endpoint gave nothing usable; the message is the finding's text."""


class EndpointCheck:
    """Looks at one endpoint; each step adds findings, and a hopeless one ends the run.

    Args:
        endpoint: the endpoint.
        client: connections.
        max_tokens: completion tokens that one request of the coming job may take.
    """

    def __init__(self, endpoint: Endpoint, client: httpx.AsyncClient, max_tokens: int) -> None:
        self._endpoint = endpoint
        self._client = client
        self._max_tokens = max_tokens
        self._headers: dict[str, str] = {}
        self._findings: list[Finding] = []

    def _add(self, check: str, level: Level, text: str) -> None:
        self._findings.append(Finding(f"endpoint {self._endpoint.name}", check, level, text))

    async def run(self) -> list[Finding]:
        """Look at everything that can be looked at; never raises for what it finds."""
        self._timeout()
        try:
            if key := self._endpoint.key():
                self._headers = {"authorization": f"Bearer {key}"}
        except ConfigError as error:
            self._add("api key", "fail", str(error))
            return self._findings
        if await self._healthy() and (entry := await self._served()):
            await self._room(entry)
            await self._structured(str(entry["id"]))
        return self._findings

    def _timeout(self) -> None:
        endpoint = self._endpoint
        try:
            timeout = derive(self._max_tokens, endpoint.min_tokens_per_s, endpoint.timeout_s)
        except ConfigError as error:
            self._add("timeout", "fail", str(error))
            return
        own = f"timeout_s = {timeout.seconds:g}; it takes " if endpoint.timeout_s else ""
        text = f"{own}{timeout.arithmetic()} at N = {endpoint.concurrency}"
        self._add("timeout", "ok", text)

    async def _healthy(self) -> bool:
        try:
            response = await self._client.get(
                f"{self._endpoint.root}/health", headers=self._headers
            )
        except (httpx.HTTPError, OSError) as error:
            self._add("health", "fail", f"{self._host()} does not answer: {words(error)}")
            return False
        status = response.status_code
        if status == 404:
            self._add("health", "warn", "the server has no /health: nobody can tell if it is well")
        elif status != 200:
            self._add("health", "fail", f"/health says {status}: {_server_words(response)}")
        else:
            self._add("health", "ok", self._host())
        return status in (200, 404)

    def _host(self) -> str:
        url = httpx.URL(self._endpoint.url)  # a URL can hold a password
        return f"{url.scheme}://{url.host}" + (f":{url.port}" if url.port else "")

    async def _served(self) -> Mapping[str, Any] | None:
        """The entry of the model to ask for, if the server serves it."""
        try:
            body = await self._json("GET", f"{self._endpoint.url}/models")
        except _Broken as error:
            self._add("model", "fail", f"/v1/models: {error}")
            return None
        listed = body.get("data") if isinstance(body.get("data"), list) else []
        entries = {
            str(entry["id"]): entry
            for entry in listed or ()
            if isinstance(entry, dict) and "id" in entry
        }
        names, wanted = ", ".join(entries) or "no model", self._endpoint.model
        if wanted is None and len(entries) == 1:
            wanted = next(iter(entries))
        if wanted is None:
            self._add("model", "fail", f"the server has {names}: name one in `model`")
            return None
        if wanted not in entries:
            self._add("model", "fail", f"{wanted} is not served; the server has {names}")
            return None
        self._add("model", "ok", wanted)
        return entries[wanted]

    async def _room(self, entry: Mapping[str, Any]) -> None:
        """Whether the context has room for max_tokens, and the server slots for N."""
        room = entry.get("max_model_len")
        if room is None and isinstance(entry.get("meta"), dict):  # llama.cpp
            room = await self._llama_room(entry["meta"])
        if not isinstance(room, int):
            self._add("context", "ok", "the server does not say how long its context is")
        elif room <= self._max_tokens:
            text = f"{room:,} tokens: no room for max_tokens = {self._max_tokens:,} and a prompt"
            self._add("context", "fail", text)
        else:
            left = room - self._max_tokens
            text = (
                f"{room:,} tokens: max_tokens = {self._max_tokens:,} leaves {left:,} for the prompt"
            )
            self._add("context", "ok", text)

    async def _llama_room(self, meta: Mapping[str, Any]) -> Any:
        try:
            props = await self._json("GET", f"{self._endpoint.root}/props")
        except _Broken:
            return meta.get("n_ctx_train")
        slots, wanted = props.get("total_slots"), self._endpoint.first_n
        if isinstance(slots, int) and slots < wanted:
            text = f"the server runs {slots} requests at once: at N = {wanted} the rest queue in it"
            self._add("concurrency", "warn", text)
        settings = props.get("default_generation_settings")
        room = settings.get("n_ctx") if isinstance(settings, dict) else None
        return room or meta.get("n_ctx_train")

    async def _structured(self, model: str) -> None:
        """Whether the server makes the model follow a schema, and how fast it answers alone."""
        for budget in _PROBE_BUDGETS:
            started = time.monotonic()
            try:
                body = await self._json(
                    "POST",
                    f"{self._endpoint.url}/chat/completions",
                    self._probe(model, budget),
                    timeout=self._endpoint.timeout_s
                    or needed(budget, self._endpoint.min_tokens_per_s),
                )
                content, finish = _answer(body)
            except _Broken as error:
                self._add("structured output", "fail", str(error))
                return
            seconds = time.monotonic() - started
            if content.strip() or finish != "length":
                break
        self._speed(body, seconds)
        if not content.strip() and finish == "length":
            text = (
                f"not seen: the model spent {budget} tokens without an answer, on reasoning as it "
                "seems; set reasoning_effort = low"
            )
            self._add("structured output", "warn", text)
        elif problem := _mismatch(content):
            text = f"the server does not enforce a JSON Schema: {problem}: {cut(repr(content))}"
            self._add("structured output", "fail", text)
        else:
            self._add("structured output", "ok", "a JSON Schema is enforced")

    def _probe(self, model: str, budget: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": _PROBE_PROMPT}],
            "max_tokens": budget,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "probe", "schema": _PROBE_SCHEMA, "strict": True},
            },
        }
        if self._endpoint.reasoning_effort:
            body["reasoning_effort"] = self._endpoint.reasoning_effort
        return {**body, **self._endpoint.extra}

    def _speed(self, body: Mapping[str, Any], seconds: float) -> None:
        usage = body.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if not isinstance(tokens, int) or tokens <= 0 or seconds <= 0:
            self._add("speed", "warn", "the server does not count tokens: there is no `usage`")
            return
        rate, expected = tokens / seconds, self._endpoint.min_tokens_per_s
        text = f"{tokens} tokens in {seconds:.2f} s = {rate:.1f} tokens/s for one request alone"
        # A slow first token weighs much in a short reply: this can only hint.
        if rate < expected:
            self._add("speed", "warn", f"{text}, below min_tokens_per_s = {expected:g}")
        else:
            self._add("speed", "ok", text)

    async def _json(
        self, method: str, url: str, body: Any = None, timeout: float = QUICK_S
    ) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(timeout):
                response = await self._client.request(
                    method, url, json=body, headers=self._headers, timeout=timeout
                )
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _Broken(f"no reply in {timeout:.0f} s") from error
        except (httpx.HTTPError, OSError) as error:
            raise _Broken(words(error)) from error
        if response.status_code in (401, 403):
            raise _Broken(f"HTTP {response.status_code}: the server refuses the API key")
        if response.status_code != 200:
            raise _Broken(f"HTTP {response.status_code}: {_server_words(response)}")
        try:
            found = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise _Broken(f"the reply is no JSON object: {_server_words(response)}")
        return found


def _answer(body: Mapping[str, Any]) -> tuple[str, Any]:
    """(content, finish_reason) of a chat completion."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise _Broken(f"the reply has no choices: {cut(orjson.dumps(body).decode())}")
    content = message.get("content")
    return (content if isinstance(content, str) else ""), choice.get("finish_reason")


def _mismatch(content: str) -> str | None:
    """What is wrong with the probe's answer, or None."""
    try:
        jsonschema.validate(orjson.loads(content), _PROBE_SCHEMA)
    except orjson.JSONDecodeError:
        return "the reply is not JSON"
    except jsonschema.ValidationError as error:
        return cut(str(error.message))
    return None


def _server_words(response: httpx.Response) -> str:
    return cut(" ".join(response.text.split())) or "nothing more"
