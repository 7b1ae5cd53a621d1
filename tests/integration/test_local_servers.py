"""The embedded Valkey and the embedded model start, serve and stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from fanout import demo
from fanout.local.model import ALIAS, ModelServer
from fanout.local.processes import LocalError, Stack
from fanout.local.valkey import ValkeyServer

SLOTS = 3


def test_valkey_keeps_its_data_over_a_kill(tmp_path: Path) -> None:
    with Stack() as stack:
        first = ValkeyServer(tmp_path)
        first.start_in(stack)
        with redis.Redis.from_url(first.url) as client:
            client.set("key", "value")
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert first.process.pid is not None
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.stop()
        second = ValkeyServer(tmp_path)
        second.start_in(stack)
        with redis.Redis.from_url(second.url) as client:
            assert client.get("key") == b"value"
    assert second.process.returncode == 0


def test_two_valkeys_do_not_share_a_folder(tmp_path: Path) -> None:
    with Stack() as stack:
        ValkeyServer(tmp_path).start_in(stack)
        with pytest.raises(LocalError, match="Another Valkey is using"):
            ValkeyServer(tmp_path)
    ValkeyServer(tmp_path).release()


def test_valkey_says_why_it_cannot_start(tmp_path: Path) -> None:
    with Stack() as stack, socket.create_server(("127.0.0.1", 0)) as taken:
        server = ValkeyServer(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(LocalError, match=r"(?is)valkey ended with status 1.*in use"):
            server.start_in(stack)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    pytest.importorskip("xllamacpp")
    with Stack() as stack:
        server = ModelServer(log=tmp_path_factory.mktemp("model") / "model.log", slots=SLOTS)
        server.start_in(stack)
        yield server


def ask(server: ModelServer, path: str, body: dict[str, Any] | None = None) -> str:
    request = urllib.request.Request(
        server.url.removesuffix("/v1") + path,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=100) as reply:
        return str(reply.read().decode())


def chat(server: ModelServer, text: str, **options: Any) -> Any:
    messages = [
        {"role": "system", "content": demo.prompt()},
        {"role": "user", "content": text},
    ]
    body = {"model": ALIAS, "messages": messages, "temperature": 0, **options}
    return json.loads(ask(server, "/v1/chat/completions", body))


def test_model_answers_in_the_schema_and_counts_its_tokens(model: ModelServer) -> None:
    schema = {"name": "Passage", "schema": demo.Passage.model_json_schema()}
    passage = json.loads(demo.passages_path().read_text().splitlines()[0])["text"]
    reply = chat(
        model,
        passage,
        max_tokens=demo.MAX_TOKENS,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert demo.Passage.model_validate_json(choice["message"]["content"]).characters
    assert 0 < reply["usage"]["completion_tokens"] < demo.MAX_TOKENS
    assert reply["timings"]["prompt_ms"] > 0
    assert reply["model"] == ALIAS


def test_model_tells_its_name_and_its_load(model: ModelServer) -> None:
    assert [entry["id"] for entry in json.loads(ask(model, "/v1/models"))["data"]] == [ALIAS]
    assert "llamacpp:requests_processing" in ask(model, "/metrics")
    assert len(json.loads(ask(model, "/slots"))) == SLOTS


def test_priming_puts_the_prefix_into_every_slot(model: ModelServer) -> None:
    model.prime(demo.prompt())
    for slot in range(SLOTS):
        usage = chat(model, "Jane smiled.", max_tokens=1, id_slot=slot)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 0.8 * usage["prompt_tokens"]


def test_model_ends_at_sigterm_in_the_middle_of_a_request(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    with Stack() as stack:
        server = ModelServer(log=tmp_path / "model.log", slots=1)
        server.start_in(stack)
        request = json.dumps({"prompt": "Once", "max_tokens": 1900, "ignore_eos": True}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request)}"
            connection.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode())
            connection.sendall(request)
            deadline = time.monotonic() + 30
            while "llamacpp:requests_processing 1" not in ask(server, "/metrics"):
                assert time.monotonic() < deadline
            # A process that has to be killed after the grace would end with 137.
            assert server.process.stop(grace_s=60) == 0
        with pytest.raises(LocalError, match="does not answer"):
            server.prime("anything")


def test_model_process_needs_nothing_but_its_port(tmp_path: Path) -> None:
    help_text = subprocess.run(
        [sys.executable, "-P", "-m", "fanout.local.model", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout
    assert "--slots" in help_text
