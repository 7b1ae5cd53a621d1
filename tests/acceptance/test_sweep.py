"""`fanout sweep` against the simulator: the real command, from a hostile folder, without Redis."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kit import FANOUT, environment, fanout, hostile, until

from fanout.sim.published import TABLES

#: Simulated seconds in one second.
SPEED = 100.0
SMALL = ("--prompt-tokens", "60", "--output-tokens", "20")


@contextmanager
def simulated(folder: Path, model: str, *more: str) -> Iterator[str]:
    """The URL of a simulator for as long as the block lasts."""
    ready = folder / f"{model}.url"
    command = [FANOUT, "sim", "--model", model, "--port", "0", "--ready-file", str(ready), *more]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: ready.exists() and ready.read_text().strip(), "the simulator listens")
        yield ready.read_text().strip()
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hostile(tmp_path)


def sweeps_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["sweeps"]
    return found


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/stats") as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def test_a_list_gives_the_published_rows_and_all_four_files(folder: Path) -> None:
    with simulated(folder, "dense", "--speed", str(SPEED)) as url:
        done = fanout("sweep", url, "-c", "1,2,8,32", "-o", "dense", cwd=folder)
        seen = stats(url)["in_flight"]
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    sweep = sweeps_of(folder / "dense.json")[0]
    published = {row.concurrency: row for row in TABLES["dense"]}
    for point in sweep["points"]:
        row = published[point["concurrency"]]
        # Far off only where something is wrong; how near it comes is the benchmark's matter.
        assert point["tokens_per_s"] / SPEED == pytest.approx(row.tokens_per_s, rel=0.2)
        assert point["tokens"] == 400 * point["concurrency"]
        assert point["prompt_tokens"] == 1500
        assert point["cached_tokens"] in (None, 0)
        assert (point["timeouts"], point["errors"]) == (0, {})
        assert point["server"]["kv_max"] is not None
    assert seen["max"] == 32
    assert (sweep["analysis"]["recommended"], sweep["analysis"]["curve"]) == (32, "rising")
    table = csv.DictReader((folder / "dense.csv").read_text().splitlines())
    assert [row["concurrency"] for row in table] == ["1", "2", "8", "32"]
    assert (folder / "dense.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "dense.svg").read_text()
    assert "N = 32" in done.stdout
    assert "scaling" in done.stdout
    assert "\x1b[" not in done.stdout + done.stderr


def test_the_search_finds_the_plateau_and_writes_n(folder: Path) -> None:
    with simulated(folder, "mamba", "--speed", "60") as url:
        text = f'# mine\n[endpoint.nano]\nurl = "{url}"\nconcurrency = 64  # a guess\n'
        (folder / "fanout.toml").write_text(text)
        done = fanout("sweep", "--write", "-o", "nano", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = sweeps_of(folder / "nano.json")[0]["analysis"]
    # From seven on throughput is within a few per cent of eight, where the slots end.
    assert 6 <= found["recommended"] <= 12
    assert max(p["concurrency"] for p in sweeps_of(folder / "nano.json")[0]["points"]) <= 32
    written = (folder / "fanout.toml").read_text()
    assert written == text.replace("= 64", f"= {found['recommended']}")
    assert "- concurrency = 64" in done.stderr
    assert f"+ concurrency = {found['recommended']}" in done.stderr


def test_what_is_missing_is_measured_and_nothing_else(folder: Path) -> None:
    with simulated(folder, "moe", "--speed", "200") as url:
        first = fanout("sweep", url, "-c", "1,4", *SMALL, "-o", "moe", cwd=folder)
        assert first.returncode == 0, first.stderr
        before = {p["concurrency"]: p for p in sweeps_of(folder / "moe.json")[0]["points"]}
        again = fanout("sweep", url, "-c", "1,2,4,8", *SMALL, "--resume", "moe.json", cwd=folder)
        assert again.returncode == 0, again.stderr
        after = {p["concurrency"]: p for p in sweeps_of(folder / "moe.json")[0]["points"]}
        assert sorted(after) == [1, 2, 4, 8]
        assert {n: after[n] for n in before} == before
        other = fanout("sweep", url, "-c", "16", "--resume", "moe.json", cwd=folder)
        assert other.returncode == 2
        assert "another shape" in other.stderr
        taken = fanout("sweep", url, "-c", "1", *SMALL, "-o", "moe", cwd=folder)
        assert taken.returncode == 2
        assert "--overwrite" in taken.stderr
    with simulated(folder, "dense", "--speed", "200") as url:
        moved = fanout("sweep", url, "-c", "1", *SMALL, "--resume", "moe.json", cwd=folder)
        assert moved.returncode == 2
        assert "another endpoint" in moved.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_what_was_measured_survives_an_interruption(
    folder: Path, number: signal.Signals, code: int
) -> None:
    # At N = 2 a wave takes a minute and more.
    with simulated(folder, "dense", "--speed", "60") as url:
        process = subprocess.Popen(
            [FANOUT, "sweep", url, "-c", "1,2", "--waves", "60", *SMALL, "-o", "cut"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: (folder / "cut.json").exists(), "the first point is written")
        process.send_signal(number)
        out, said = process.communicate(timeout=30)
        assert process.returncode == code
        until(lambda: stats(url)["in_flight"]["now"] == 0, "what was in flight is aborted")
    assert said.splitlines()[-1] == "fanout: interrupted"
    sweep = sweeps_of(folder / "cut.json")[0]
    assert [p["concurrency"] for p in sweep["points"]] == [1]
    assert not sweep["complete"]
    assert "tokens/s" in out


def test_a_budget_ends_it_with_what_there_is(folder: Path) -> None:
    with simulated(folder, "dense", "--speed", "60") as url:
        arguments = ("-c", "1,2", "--waves", "60", *SMALL, "--budget", "6s", "-o", "short")
        done = fanout("sweep", url, *arguments, cwd=folder)
    assert done.returncode == 4, done.stderr
    assert "the budget of 6 s ran out" in done.stdout
    assert len(sweeps_of(folder / "short.json")[0]["points"]) < 2


def test_two_endpoints_in_one_chart_with_the_user_s_own_documents(folder: Path) -> None:
    schema = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
    (folder / "schema.json").write_text(json.dumps(schema))
    rows = [json.dumps({"text": f"document {n}"}) for n in range(8)]
    (folder / "docs.jsonl").write_text("\n".join(rows))
    with (
        simulated(folder, "moe", "--speed", "200") as one,
        simulated(folder, "mamba", "--speed", "200", "--fault", "null=1") as two,
    ):
        (folder / "fanout.toml").write_text(
            f'[endpoint.moe]\nurl = "{one}"\n[endpoint.nano]\nurl = "{two}"\ntier = "light"\n'
        )
        arguments = ("--input", "docs.jsonl", "--schema", "schema.json", "--max-tokens", "50")
        done = fanout(
            "sweep", "moe", "nano", "--together", "-c", "1,4", *arguments, "-o", "two", cwd=folder
        )
    assert done.returncode == 0, done.stderr
    good, bad = sweeps_of(folder / "two.json")
    assert [point["valid"] for point in good["points"]] == [1, 4]
    assert all(point["valid_per_s"] > 0 for point in good["points"])
    assert [point["valid"] for point in bad["points"]] == [0, 0]
    assert [point["unusable"] for point in bad["points"]] == [{"empty": 1}, {"empty": 4}]
    assert "● moe   ▲ nano" in done.stdout


def test_a_refusing_server_is_said_with_its_words(folder: Path) -> None:
    with simulated(folder, "moe", "--speed", "20", "--max-num-queued-reqs", "4") as url:
        done = fanout("sweep", url, "-c", "2,16", *SMALL, "-o", "full", cwd=folder)
    assert done.returncode == 0, done.stderr
    few, many = sweeps_of(folder / "full.json")[0]["points"]
    assert (few["errors"], many["errors"]) == ({}, {"overload": 12})
    assert "requests begin to fail (12 x overload of 16)" in done.stdout
    assert "HTTP 503" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "say which endpoint to sweep"),
        (("nobody",), "there is no endpoint 'nobody'"),
        (("http://127.0.0.1:9", "-c", "1,x"), "numbers from 1 up"),
        (("http://127.0.0.1:9", "-c", "0"), "numbers from 1 up"),
        (("http://127.0.0.1:9", "--budget", "soon"), "as 90s, 20m or 2h"),
        (("http://127.0.0.1:9", "--prompt-tokens", "0"), "prompt_tokens"),
        (("http://127.0.0.1:9", "-i", "x", "--schema", "missing.json"), "missing.json"),
        (("http://127.0.0.1:9", "--task", "review"), "--input"),
        (("http://127.0.0.1:9", "-o", "no/such/base"), "no/such"),
        (("http://127.0.0.1:9", "--resume", "missing.json"), "missing.json"),
        (("http://127.0.0.1:9", "--write"), "fanout.toml"),
        (("http://127.0.0.1:9",), "127.0.0.1:9"),
    ],
)
def test_one_sentence_and_exit_code_2(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    done = fanout("sweep", *arguments, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""
