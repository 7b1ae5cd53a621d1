"""Cancelling a job that runs: the server is asked whether it noticed."""

from __future__ import annotations

import asyncio
import json
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

from kit import closed_port, fanout, hostile, started, until

import fanout as fo

N = 24
ITEMS = 2000
SCHEMA = {"title": "T", "type": "object", "properties": {"word": {"type": "string"}}}


def stats(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats?points=1") as reply:
        told: dict[str, Any] = json.load(reply)
    return told


async def submit(folder: Path, count: int, window: int) -> str:
    stack = tomllib.loads((folder / ".fanout" / "stack.toml").read_text())
    endpoint = {"sim": {"url": "http://127.0.0.1:1", "concurrency": N}}
    settings = fo.load_settings(redis=stack["redis"], endpoint=endpoint)
    async with fo.connect(settings=settings) as client:
        job = await client.submit(
            "extract", (f"document {n}" for n in range(count)), schema=SCHEMA, window=window
        )
        await job.submitted()
        return job.id


async def counts(folder: Path, job: str) -> fo.store.Counts:
    stack = tomllib.loads((folder / ".fanout" / "stack.toml").read_text())
    async with fo.connect(settings=fo.load_settings(redis=stack["redis"])) as client:
        return (await client.store.get(job)).counts


def test_a_cancelled_job_leaves_nothing_at_the_server(tmp_path: Path) -> None:
    here = hostile(tmp_path)
    port = closed_port()
    (here / "fanout.toml").write_text(
        f'[endpoint.sim]\nurl = "http://127.0.0.1:{port}"\nconcurrency = {N}\n'
    )
    up, sim = here / "up.log", here / "sim.log"
    with (
        started("sim", "--seconds", "3600", "--port", str(port), cwd=here, log=sim) as server,
        started("up", "--workers", "2", "--no-flower", cwd=here, log=up) as process,
    ):
        until(lambda: "ready;" in up.read_text(), "up is ready", process=process, log=up)
        job = asyncio.run(submit(here, ITEMS, ITEMS + 1))
        until(lambda: stats(port)["in_flight"]["now"] == N, "N are in flight", process=server)
        done = fanout("cancel", job, cwd=here)
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip() == (
            f"job {job} is cancelled: {N} requests aborted, 0 left at the server, "
            f"{ITEMS - N:,} had not started"
        )
        seen = stats(port)
        assert (seen["in_flight"]["now"], seen["aborted"]) == (0, N)
        assert asyncio.run(counts(here, job)).cancelled == ITEMS
        assert "was done already" in fanout("cancel", job, cwd=here).stderr
        records = fanout("results", job, "-o", "-", cwd=here)
        ended = [json.loads(line) for line in records.stdout.splitlines()]
        assert sorted(record["ordinal"] for record in ended) == list(range(ITEMS))
        at_server = [record for record in ended if record["timing"]["in_flight_s"]]
        assert len(at_server) == N
        assert fanout("cancel", "nobody", cwd=here).returncode == 2
