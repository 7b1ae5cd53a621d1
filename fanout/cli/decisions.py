"""`fanout endpoint log`: what the controller of an endpoint's N has decided, and from what."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from fanout import aio
from fanout.cli import options
from fanout.cli.console import plain, stdout
from fanout.cli.exits import Exit
from fanout.client import connect
from fanout.errors import UsageError
from fanout.store import Decided

#: Inputs worth a column, in their order; the rest is in the workers' logs.
_SHOWN = ("in_flight", "tokens_per_s", "duration_s", "running", "waiting", "kv", "stalled")


def log(
    name: Annotated[str, Parameter(help="The endpoint.")],
    *,
    lines: Annotated[int, Parameter(name=["--lines", "-n"], help="How many, the last ones.")] = 20,
    as_json: Annotated[
        bool,
        Parameter(name="--json", negative="", help="One JSON object a line, with all figures."),
    ] = False,
    redis: options.Redis = None,
) -> int:
    """Show the last decisions on an endpoint's N, oldest first.

    Example: fanout endpoint log spark -n 50
    """
    if lines < 1:
        raise UsageError("--lines is a number from 1 up")
    return aio.run(_log(redis, name, lines, as_json))


async def _log(redis: str | None, name: str, lines: int, as_json: bool) -> int:
    async with connect(redis) as fo:
        known = fo.settings.endpoint
        if name not in known:
            raise UsageError(f"there is no endpoint {name!r}; configured: {', '.join(known)}")
        found = await fo.store.decisions(name, lines)
    if as_json:
        sys.stdout.writelines(line + "\n" for line in lines_of(list(reversed(found))))
        return Exit.CLEAN
    if not found:
        stdout.print("nothing has been decided yet")
        return Exit.CLEAN
    stdout.print(table_of(list(reversed(found))))
    return Exit.CLEAN


def lines_of(decisions: list[Decided]) -> Iterator[str]:
    """The decisions as JSON, one a line, in the order given, with all that was recorded."""
    # ASCII alone: a reason comes from another process, and stdout may be a terminal.
    return (json.dumps(asdict(one)) for one in decisions)


def table_of(decisions: list[Decided]) -> Table:
    """The decisions as a table, in the order given."""
    shown = [key for key in _SHOWN if any(key in one.inputs for one in decisions)]
    headings = ("time", "N", "phase", "why", *(key.replace("_", " ") for key in shown))
    table = Table(*headings, box=None, padding=(0, 2))
    for one in decisions:
        clock = time.strftime("%H:%M:%S", time.localtime(one.at))
        change = str(one.n) if one.n == one.before else f"{one.before} → {one.n}"
        figures = (f"{one.inputs[key]:g}" if key in one.inputs else "" for key in shown)
        table.add_row(clock, change, plain(one.phase), plain(one.reason), *figures)
    return table
