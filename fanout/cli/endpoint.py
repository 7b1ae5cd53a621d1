"""`fanout endpoint`: N of each endpoint, who holds how much of it, and a new N at run time."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from fanout import aio
from fanout.cli import options
from fanout.cli.console import plain, stdout
from fanout.cli.exits import Exit
from fanout.client import Fanout, connect
from fanout.errors import UsageError
from fanout.settings import Endpoint


def endpoint(
    name: Annotated[str | None, Parameter(help="An endpoint; default: all of them.")] = None,
    *,
    concurrency: Annotated[
        int | None,
        Parameter(name=["--concurrency", "-j"], help="New N: up at once, down as requests finish."),
    ] = None,
    reset: Annotated[
        bool, Parameter(negative="", help="Go back to the N of the configuration.")
    ] = False,
    redis: options.Redis = None,
) -> int:
    """Show N of the endpoints and each worker's part of it, or change N while workers run.

    Example: fanout endpoint spark --concurrency 192
    """
    if concurrency is not None and (concurrency < 0 or reset):
        raise UsageError("--concurrency is a number from 0 up, and goes without --reset")
    if name is None and (concurrency is not None or reset):
        raise UsageError("say which endpoint to change")
    return aio.run(_endpoint(redis, name, concurrency, reset=reset))


async def _endpoint(
    redis: str | None, name: str | None, concurrency: int | None, *, reset: bool
) -> int:
    async with connect(redis) as fo:
        known = fo.settings.endpoint
        if name is not None and name not in known:
            raise UsageError(f"there is no endpoint {name!r}; configured: {', '.join(known)}")
        if name is not None and (concurrency is not None or reset):
            await fo.store.set_concurrency(name, concurrency)
        table = Table("endpoint", "tier", "N", "worker", "part", box=None, padding=(0, 2))
        for one in known.values():
            if name in (None, one.name):
                await _add_rows(table, fo, one)
        stdout.print(table)
    return Exit.CLEAN


async def _add_rows(table: Table, fo: Fanout, one: Endpoint) -> None:
    info = await fo.store.endpoint(one.name)
    by_hand = info.concurrency is not None
    n = f"{info.concurrency} (configured: {one.concurrency})" if by_hand else str(one.concurrency)
    rows = sorted(info.parts.items()) or [("no worker", 0)]
    for position, (holder, part) in enumerate(rows):
        head = (one.name, one.tier, n) if position == 0 else ("", "", "")
        table.add_row(*head, plain(holder), str(part))
