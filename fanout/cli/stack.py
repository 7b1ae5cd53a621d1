"""`fanout up`, `worker` and `flower`: the parts, all at once or by hand."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from cyclopts import Parameter

from fanout import aio
from fanout.cli import options
from fanout.cli.console import complain, note
from fanout.cli.exits import Exit
from fanout.client import connect
from fanout.errors import UsageError
from fanout.local.keeper import meaning
from fanout.local.probes import port_is_free
from fanout.local.services import Plan, Services, forget_stale, running
from fanout.settings import STACK_FILE, Settings, load_settings

_WATCH_S = 0.5

Task = Annotated[
    tuple[str, ...],
    Parameter(help="Another task kind as module:Kind; may be repeated.", negative=""),
]


def up(
    *,
    redis: options.Redis = None,
    task: Task = (),
    workers: Annotated[int, Parameter(help="Worker processes for each tier.")] = 1,
    flower: Annotated[bool, Parameter(help="Start Flower.")] = True,
    flower_port: Annotated[int, Parameter(help="Port of Flower; 0 = a free one.")] = 5555,
) -> int:
    """Start everything that is not configured: Redis, a local model, workers, Flower.

    With endpoints in fanout.toml no local model is started; with a Redis URL, no Redis. Other
    fanout commands in this folder find what was started. What ends unasked is started again.
    Ctrl-C stops all of it.
    """
    forget_stale(STACK_FILE.parent)
    settings = load_settings(redis=redis)
    env = _environment(redis)
    plan = Plan(
        home=STACK_FILE.parent,
        flower=flower,
        flower_port=flower_port,
        workers=workers,
        tasks=task,
        env=env,
    )
    with running(plan, settings, lambda part: note(f"starting {part}")) as services:
        _tell(services)
        return watch(services)


def worker(
    *,
    tier: options.Tier = None,
    redis: options.Redis = None,
    task: Task = (),
    loglevel: Literal["debug", "info", "warning", "error"] = "info",
) -> int:
    """Run one worker process for one tier, in the foreground."""
    chosen = load_settings(redis=redis).tier_or_default(tier)
    arguments = ["fanout_workers", "--tier", chosen, "--loglevel", loglevel]
    for reference in task:
        arguments += ["--task", reference]
    return _become(arguments, redis)


def flower(
    *,
    redis: options.Redis = None,
    port: Annotated[int, Parameter(help="Port to listen on.")] = 5555,
    address: Annotated[
        str, Parameter(help="Address to listen on; beyond loopback it needs a password.")
    ] = "127.0.0.1",
) -> int:
    """Run Flower with fanout's columns, in the foreground."""
    if not port_is_free(port, address):
        raise UsageError(f"port {port} of {address} is taken, or not to be had: choose another")
    return _become(["fanout.flower", "--port", str(port), "--address", address], redis)


def _tell(services: Services) -> None:
    settings = services.settings
    note(f"Redis     {settings.redis_name}")
    for endpoint in settings.endpoint.values():
        note(
            f"endpoint  {endpoint.name}: {endpoint.url} "
            f"(tier {endpoint.tier}, N = {endpoint.concurrency})"
        )
    if services.flower_url:
        note(f"Flower    {services.flower_url}")
    note(f"logs      {services.plan.logs}")
    for name, problem in aio.run(_problems(settings)).items():
        complain(f"endpoint {name}: {problem}")
    note("ready; Ctrl-C stops everything")


def watch(services: Services) -> int:
    """Start again what ends unasked, and return when that makes no sense; Ctrl-C ends the wait."""
    keeper = services.keeper(partial(complain, lines=True))
    while (ended := keeper.look()) is None:
        time.sleep(_WATCH_S)
    complain(
        f"{ended.name} ended ({meaning(ended.returncode)}), and would so again; {ended.tail()}",
        lines=True,
    )
    return Exit.INCOMPLETE


async def _look(redis: str | None) -> None:
    """Raise `Unavailable` if Redis does not answer: Celery would only go on trying."""
    async with connect(redis):
        pass


async def _problems(settings: Settings) -> dict[str, str]:
    async with connect(settings=settings) as fo:
        workers = await fo.store.workers()
    return {name: text for worker in workers for name, text in worker.problems.items()}


def _environment(redis: str | None) -> dict[str, str]:
    # Through the environment, not the command line: a URL can hold a password.
    return {"FANOUT_REDIS": redis} if redis else {}


def _become(arguments: Sequence[str], redis: str | None) -> int:
    """Replace this process, so that signals and the exit code are the part's own."""
    aio.run(_look(redis))
    # -P: a folder named fanout in the current directory must not be imported.
    command = [sys.executable, "-P", "-m", *arguments]
    os.execve(sys.executable, command, {**os.environ, **_environment(redis)})  # noqa: S606
