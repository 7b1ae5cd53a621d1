"""`fanout cancel`: abort what runs of a job, end the rest, and say whether that has worked."""

from __future__ import annotations

from typing import Annotated

import httpx
from cyclopts import Parameter

from fanout import aio
from fanout.cancelling import Cancelled, Canceller
from fanout.cli import options
from fanout.cli.console import complain, note
from fanout.cli.exits import Exit
from fanout.client import connect
from fanout.errors import ConfigError


def cancel(
    job: Annotated[str, Parameter(help="The job's id.")],
    *,
    wait: Annotated[
        float, Parameter(help="Seconds to wait until nothing of it is left, at most.")
    ] = 20.0,
    redis: options.Redis = None,
) -> int:
    """Abort a job's requests, end what has not started, and check that nothing is left.

    Exit code 3: something was left after the wait.
    """
    found = aio.run(_cancel(redis, job, wait))
    if found.was_done:
        note(f"job {job} was done already")
        return Exit.CLEAN
    said = sentence(job, found)
    if found.is_over:
        note(said)
        return Exit.CLEAN
    complain(said)
    return Exit.INCOMPLETE


async def _cancel(redis: str | None, job_id: str, wait_s: float) -> Cancelled:
    async with connect(redis) as fo, httpx.AsyncClient() as client:
        info = await fo.store.get(job_id)
        try:
            endpoints = fo.settings.endpoints_of(info.spec.tier)
        except ConfigError:  # submitted from elsewhere: the workers know them, and that will do
            endpoints = ()
        return await Canceller(fo.store, endpoints, client).cancel(job_id, wait_s)


def sentence(job: str, found: Cancelled) -> str:
    """What a cancellation has come to, and what to do where something is left."""
    said = (
        f"job {job} is cancelled: {found.aborted:,} requests aborted, {found.left:,} left at the "
        f"server, {found.not_started:,} had not started"
    )
    silent = [name for name, count in found.at_server.items() if count is None]
    if silent:
        said += f" ({', '.join(silent)} does not tell what runs there; the workers say so)"
    if found.running:
        said += "; workers have not ended them yet: look into their logs, or stop them"
    elif found.left:
        names = ", ".join(name for name, count in found.at_server.items() if count)
        said += (
            f"; {names} still works on requests of which no worker knows: they were not aborted "
            "there, or are another client's"
        )
    if found.open:
        said += (
            f"; {found.open:,} items have not ended: no worker of the tier runs, or one has died "
            "with them; they end when they are delivered again"
        )
    return said
