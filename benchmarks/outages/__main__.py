"""What a cancellation and an outage of the server cost: seconds, and items that fail.

`cancel` cancels a job with N requests in flight and items queued. The others take the only server
away in mid-run, for `--down` seconds, and look how long it takes until N are in flight again once
it is back: `killed` stops its process; `stalled` freezes it, so that all requests hang and then go
on; the rest put a server in its place that does nothing but fail in that way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "inflight"))

from rig import SCHEMA, Outcome, Rig, Server, lognormal, rig

from fanout import connect
from fanout.local.processes import Process

FANOUT = str(Path(sys.executable).with_name("fanout"))
#: Ways to fail, as options of `fanout sim`.
FAULTS = {
    "errors": ("--fault", "error=1"),
    "full": ("--fault", "error=1", "--error-status", "503"),
    "unknown": ("--fault", "error=1", "--error-status", "404"),
    "broken": ("--fault", "broken=1"),
    "hang": ("--fault", "hang=1"),
}
#: What a request takes, and its budget: at 64 tokens/s its derived timeout is about a minute.
MEAN_S = 1.0
TOKENS = 64

Line = dict[str, Any]


def cancel(options: argparse.Namespace) -> Line:
    """A job with N in flight and the rest queued."""
    with rig([Server("spark", options.n, mean_s=3600.0)], {"default": options.workers}) as made:
        return asyncio.run(_cancel(made, options.items))


async def _cancel(made: Rig, items: int) -> Line:
    async with connect(settings=made.settings) as fo:
        docs = ({"id": str(n), "text": f"document {n} " + "x" * 500} for n in range(items))
        job = await fo.submit("extract", docs, schema=SCHEMA, window=items + 1)
        await job.submitted()
        await _until(lambda: made.server.in_flight == made.server.n)
        began = time.monotonic()
        command = await asyncio.create_subprocess_exec(
            FANOUT, "cancel", job.id, stderr=subprocess.PIPE
        )
        while await fo.store.state(job.id) != "cancelled":
            await asyncio.sleep(0.01)
        marked = time.monotonic()
        await _until(lambda: made.server.in_flight == 0)
        zero_s = time.monotonic() - marked
        _, said = await command.communicate()
        seconds = time.monotonic() - began
        info = await job.info()
        return {
            "marked_s": round(marked - began, 2),
            "zero_s": round(zero_s, 2),
            "command_s": round(seconds, 2),
            "exit": command.returncode,
            "said": said.decode().strip(),
            "aborted": made.server.stats()["aborted"],
            "counts": {k: v for k, v in vars_of(info.counts).items() if v},
        }


def vars_of(counts: Any) -> dict[str, int]:
    """Its fields and what is open."""
    named = ("submitted", "ok", "invalid", "failed", "skipped", "cancelled", "open")
    return {name: getattr(counts, name) for name in named}


def outage(options: argparse.Namespace, kind: str) -> Line:
    """The server away in one way."""
    os.environ |= {
        "FANOUT_ENDPOINT__SPARK__MIN_TOKENS_PER_S": str(TOKENS),
        "FANOUT_ENDPOINT__SPARK__STREAM": "true" if options.stream else "false",
    }
    with rig([Server("spark", options.n, mean_s=MEAN_S)], {"default": options.workers}) as made:
        times: list[float] = []

        def event() -> None:
            times.append(_away(made, kind, options.down))

        task = asyncio.run(_run(made, options, event))
        return {
            "back_s": round(times[0], 1),
            "lost": task.lost,
            "twice": task.twice,
            "statuses": task.statuses,
            "attempts": task.attempts,
            "retried": task.retried,
        }


class Told(Outcome):
    """Also what the failures were."""

    attempts: int
    retried: dict[str, int]


async def _run(made: Rig, options: argparse.Namespace, event: Callable[[], None]) -> Told:
    told = Told(options.items)
    told.attempts, told.retried = 0, {}
    docs = ({"id": str(n), "text": f"document {n}"} for n in range(options.items))
    event_task: asyncio.Task[None] | None = None
    async with connect(settings=made.settings) as fo:
        job = await fo.submit(
            "extract", docs, schema=SCHEMA, max_tokens=TOKENS, window=max(2048, 6 * options.n)
        )
        async for batch in job.batches():
            for record in batch:
                told.statuses[record.status] = told.statuses.get(record.status, 0) + 1
                told.ids.append(record.id)
                told.attempts = max(told.attempts, record.attempts)
                for kind, count in record.retried.items():
                    told.retried[kind] = told.retried.get(kind, 0) + count
            if event_task is None and len(told.ids) >= options.items // 4:
                event_task = asyncio.create_task(asyncio.to_thread(event))
        if event_task is not None:
            await event_task
    return told


def _away(made: Rig, kind: str, down_s: float) -> float:
    """Take the server away and bring it back; seconds from then until N are in flight."""
    server = made.server
    process = server.process
    assert process is not None
    assert process.pid is not None
    if kind == "stalled":
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(down_s)
        os.kill(process.pid, signal.SIGCONT)
        began = time.monotonic()
    else:
        os.kill(process.pid, signal.SIGKILL)
        process.stop()
        if kind in FAULTS:
            faulty = _start(made, server, FAULTS[kind])
            time.sleep(down_s)
            faulty.stop()
        else:
            time.sleep(down_s)
        made.start_server(server)
        began = time.monotonic()
    seen: list[int] = []
    while time.monotonic() < began + 60:
        seen.append(server.in_flight)
        if seen[-1] >= 0.98 * server.n:
            return time.monotonic() - began
        time.sleep(0.1)
    print(f"in flight, ten times a second: {seen}", file=sys.stderr)
    return float("inf")


def _start(made: Rig, server: Server, extra: tuple[str, ...]) -> Process:
    ready = made.place / "faulty.ready"
    command = [sys.executable, "-P", "-m", "fanout", "sim", "--seconds", lognormal(server.mean_s)]
    command += ["--port", str(server.port), "--ready-file", str(ready), *extra]
    process = Process("faulty", command, log=made.place / "faulty.log")
    made._stack.start(process, ready=ready.exists)
    return process


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


def main() -> None:
    kinds = ("killed", "stalled", *FAULTS)
    parser = argparse.ArgumentParser(prog="outages", description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=f"cancel, {', '.join(kinds)}")
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--down", type=float, default=20.0)
    parser.add_argument("--stream", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.scenarios) - {"cancel", *kinds}:
        parser.error(f"no scenario {', '.join(sorted(unknown))}")
    lines: dict[str, Line] = {}
    for name in options.scenarios or ("cancel", *kinds):
        began = time.monotonic()
        lines[name] = cancel(options) if name == "cancel" else outage(options, name)
        lines[name]["wall_s"] = round(time.monotonic() - began, 1)
        print(name, json.dumps(lines[name]), file=sys.stderr, flush=True)
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
