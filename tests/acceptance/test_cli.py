"""The command itself, without any server: what is wrong is said in one sentence, exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kit import closed_port, fanout, hostile

SCHEMA = {
    "title": "Thing",
    "type": "object",
    "properties": {"word": {"type": "string"}},
    "required": ["word"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "docs.jsonl").write_text('{"id": "a", "text": "one"}\n')
    return hostile(tmp_path)


EXTRACT = ("extract", "docs.jsonl", "--schema", "schema.json", "-o", "out.jsonl")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("frob",), "frob"),
        (("extract",), "requires an argument"),
        (
            ("extract", "docs.jsonl", "--schema", "schema.json", "--frob", "1", "-o", "o.jsonl"),
            "frob",
        ),
        ((*EXTRACT[:1], "missing.jsonl", *EXTRACT[2:]), "missing.jsonl"),
        ((*EXTRACT[:3], "missing.json", *EXTRACT[4:]), "missing.json"),
        ((*EXTRACT[:3], "nowhere:Model", *EXTRACT[4:]), "nowhere"),
        ((*EXTRACT[:5], "no/such/folder/out.jsonl"), "no/such/folder"),
        ((*EXTRACT[:5], "out.xlsx"), "out.xlsx"),
        ((*EXTRACT, "--prompt", "@missing.md"), "missing.md"),
        ((*EXTRACT, "--window", "many"), "window"),
        ((*EXTRACT, "--window", "0"), "window"),
        (("endpoint", "set", "any", "-j", "65536"), "from 0 to 65535"),
        (("review", "missing"), "missing"),
        (("agent", "missing.json"), "missing.json"),
    ],
)
def test_one_sentence_and_exit_code_2(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    done = fanout(*arguments, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""


def test_a_dead_redis(folder: Path) -> None:
    env = {"FANOUT_REDIS": f"redis://:hunter2@127.0.0.1:{closed_port()}/0"}
    env["FANOUT_ENDPOINT__X__URL"] = "http://127.0.0.1:1"
    done = fanout(*EXTRACT, cwd=folder, env=env)
    assert done.returncode == 2
    assert "does not answer" in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "out.jsonl").exists()  # it would be in the way of the next try
    for command in ("worker", "flower", "status"):
        done = fanout(command, cwd=folder, env=env)
        assert done.returncode == 2, command
        assert "does not answer" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("redis = ", "fanout.toml"),
        ("[endpoint.x]\nurl = 'ftp://x'\n", "endpoint.x.url"),
        ("[endpoint.x]\nurl = 'http://x'\nconcurency = 3\n", "endpoint.x.concurency"),
        ("[endpoint.x]\nurl = 'http://x'\nconcurrency = 0\n", "endpoint.x.concurrency"),
    ],
)
def test_a_broken_configuration_names_the_place(folder: Path, toml: str, says: str) -> None:
    (folder / "fanout.toml").write_text(toml)
    done = fanout(*EXTRACT, cwd=folder)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_command(folder: Path) -> None:
    done = fanout("--help", cwd=folder)
    assert done.returncode == 0
    for command in (
        "extract",
        "review",
        "agent",
        "demo",
        "up",
        "worker",
        "flower",
        "doctor",
        "sweep",
    ):
        assert command in done.stdout
        assert fanout(command, "--help", cwd=folder).returncode == 0
