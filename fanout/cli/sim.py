"""`fanout sim`: a simulated model server."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import uvloop
from cyclopts import Parameter

from fanout.cli.console import note, stdout
from fanout.cli.exits import Exit
from fanout.errors import UsageError
from fanout.sim.curves import load_profile
from fanout.sim.faults import KINDS, Faults
from fanout.sim.lengths import parse_distribution
from fanout.sim.options import Options
from fanout.sim.server import Server

_KINDS = ", ".join(KINDS)


def sim(
    *,
    model: Annotated[
        str, Parameter(help="dense, moe, mamba (three published curves), or a .toml/.json file.")
    ] = "moe",
    speed: Annotated[
        float, Parameter(help="Simulated seconds in one second; clients see everything faster.")
    ] = 1.0,
    port: Annotated[int, Parameter(help="Port to listen on; 0 = a free one.")] = 8000,
    host: Annotated[str, Parameter(help="Address to listen on.")] = "127.0.0.1",
    seed: Annotated[int, Parameter(help="Seed of everything drawn.")] = 0,
    noise: Annotated[
        float, Parameter(help="Standard deviation of the server's speed, as a share of it.")
    ] = 0.0,
    output_lengths: Annotated[
        str | None,
        Parameter(
            help="Output tokens of an answer: a number, lognormal:MEDIAN,SIGMA, uniform:LOW,HIGH, "
            "exponential:MEAN. Default: as many as max_tokens allows, which also bounds the rest."
        ),
    ] = None,
    reasoning: Annotated[
        str | None,
        Parameter(help="Reasoning effort where a request names none. Default: no reasoning then."),
    ] = None,
    max_num_seqs: Annotated[
        int | None, Parameter(help="Requests that run at once. Default: the model's.")
    ] = None,
    max_num_queued_reqs: Annotated[
        int | None,
        Parameter(help="Requests inside, running or waiting; 503 beyond. Default: any number."),
    ] = None,
    seconds: Annotated[
        str | None,
        Parameter(
            help="No curve: each request takes a time drawn from such a distribution; 0 = at once."
        ),
    ] = None,
    fault: Annotated[
        tuple[str, ...],
        Parameter(
            help=f"KIND=RATE, may be repeated. Kinds: {_KINDS}.", negative="", show_default=False
        ),
    ] = (),
    error_status: Annotated[int, Parameter(help="Status of the fault `error`.")] = 500,
    outage: Annotated[
        tuple[str, ...],
        Parameter(
            help="START:LENGTH in seconds since the start: 503 to everything.",
            negative="",
            show_default=False,
        ),
    ] = (),
    slow_start: Annotated[
        float, Parameter(help="Simulated seconds until it has its full speed.")
    ] = 0.0,
    keep_alive: Annotated[
        float, Parameter(help="Seconds after which an idle connection is closed.")
    ] = 5.0,
    per_request_metrics: Annotated[bool, Parameter(help="Let replies carry `metrics`.")] = True,
    ready_file: Annotated[
        Path | None, Parameter(help="File to write the URL to, once it listens.")
    ] = None,
) -> int:
    """Simulate a model server with vLLM's API: an NVIDIA DGX Spark as published, or your own curve.

    /stats tells what it saw: requests in flight over time, duplicates, how requests ended.

    Example: fanout sim --model dense --speed 60 --port 8000
    """
    if speed <= 0 or noise < 0 or slow_start < 0 or keep_alive <= 0:
        raise UsageError("--speed and --keep-alive must be above 0, the others not below")
    if any(most is not None and most < 1 for most in (max_num_seqs, max_num_queued_reqs)):
        raise UsageError("--max-num-seqs and --max-num-queued-reqs are numbers from 1 up")
    profile = load_profile(model)
    efforts = [effort for effort, _ in profile.reasoning_tokens]
    if reasoning is not None and reasoning not in efforts:
        known = ", ".join(efforts) or "none: this model does not reason"
        raise UsageError(f"no reasoning effort {reasoning!r}; {known}")
    options = Options(
        profile=profile,
        speed=speed,
        seed=seed,
        noise=noise,
        max_num_seqs=max_num_seqs,
        queue_limit=max_num_queued_reqs,
        lengths=None if output_lengths is None else parse_distribution(output_lengths),
        seconds=None if seconds is None else parse_distribution(seconds),
        effort=reasoning,
        faults=Faults(dict(map(_rate, fault)), error_status, tuple(map(_outage, outage))),
        slow_start_s=slow_start,
        keep_alive_s=keep_alive,
        per_request_metrics=per_request_metrics,
    )
    uvloop.run(_serve(options, host, port, ready_file))
    return Exit.CLEAN


async def _serve(options: Options, host: str, port: int, ready_file: Path | None) -> None:
    server = Server(options)
    try:
        await server.start(host, port)
    except (OSError, OverflowError) as error:
        raise UsageError(f"port {port} of {host} is not to be had: {error}") from error
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    if ready_file is not None:
        part = ready_file.with_name(f"{ready_file.name}.part")
        part.write_text(server.url)
        part.rename(ready_file)
    note(f"{options.profile.name} at {options.speed:g} times its speed; Ctrl-C stops it")
    stdout.print(server.url)
    await ended.wait()
    await server.stop()


def _rate(text: str) -> tuple[str, float]:
    kind, _, rate = text.partition("=")
    try:
        return kind, float(rate)
    except ValueError:
        raise UsageError(f"--fault {text}: KIND=RATE, for example error=0.01") from None


def _outage(text: str) -> tuple[float, float]:
    start, _, length = text.partition(":")
    try:
        return float(start), float(length)
    except ValueError:
        raise UsageError(f"--outage {text}: START:LENGTH in seconds, for example 10:5") from None
