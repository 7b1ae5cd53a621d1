"""From a bare clone to the first and the last record, and tokens/s against a bare client.

The clone has no virtual environment, so packages are fetched as a newcomer's are; the package
manager's own cache is whatever this machine has.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from fanout import Endpoint, demo
from fanout.local.model import ModelServer
from fanout.local.processes import Stack
from fanout_tasks.extract import Extract
from fanout_workers.model.body import body_of

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900


def from_clone(place: Path) -> tuple[float, float, dict[str, float]]:
    """Seconds to the first and the last record of `make demo` in a new clone, and its report."""
    clone = place / "clone"
    records = clone / "fanout-demo" / "characters.jsonl"
    began = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    process = subprocess.Popen(
        ["make", "demo"], cwd=clone, stdout=sys.stderr, stderr=sys.stderr, stdin=subprocess.DEVNULL
    )
    first = last = 0.0
    size = 0
    while process.poll() is None:
        now = time.monotonic() - began
        if now > LIMIT_S:
            process.terminate()
        grown = records.stat().st_size if records.exists() else 0
        if grown > size:
            first, last, size = first or now, now, grown
        time.sleep(0.05)
    if process.returncode not in (0, 1):
        raise SystemExit(f"make demo ended with status {process.returncode}")
    return first, last, json.loads((clone / "fanout-demo" / "report.json").read_text())


def bodies(server: ModelServer) -> list[dict[str, Any]]:
    """The requests of the demo, byte for byte as a worker sends them."""
    task = Extract(
        Extract.Params.model_validate(
            {
                "schema": demo.Passage,
                "prompt": demo.prompt(),
                "show_schema": False,
                "max_tokens": demo.MAX_TOKENS,
            }
        )
    )
    endpoint = Endpoint(name="bench", url=server.url)
    rows = [json.loads(line) for line in demo.passages_path().read_text().splitlines()]
    return [
        body_of(request, endpoint, server.alias)
        for row in rows
        for request in task.requests(Extract.Payload.model_validate({"text": row["text"]}))
    ]


async def bare(server: ModelServer) -> tuple[int, float]:
    """Completion tokens and seconds of a bare client that holds as many in flight as slots."""
    asked = bodies(server)
    server.prime(asked[0]["messages"][0]["content"])  # as the demo does
    waiting = list(reversed(asked))
    tokens = 0

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal tokens
        while waiting:
            async with session.post(f"{server.url}/chat/completions", json=waiting.pop()) as reply:
                tokens += (await reply.json())["usage"]["completion_tokens"]

    began = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=LIMIT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(work(session) for _ in range(server.slots)))
    return tokens, time.monotonic() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        first, last, report = from_clone(Path(place))
        with Stack() as stack:
            server = ModelServer(log=Path(place) / "model.log")
            server.start_in(stack)
            tokens, seconds = asyncio.run(bare(server))
    figures = {
        "first_record_s": round(first, 1),
        "last_record_s": round(last, 1),
        "tokens_per_s": report["tokens_per_s"],
        "mean_in_flight": report["mean_in_flight"],
        "bare_tokens_per_s": round(tokens / seconds, 1),
        "ratio": round(report["tokens_per_s"] / (tokens / seconds), 3),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
