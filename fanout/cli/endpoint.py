"""`fanout endpoint`: N of each endpoint, who holds how much of it, and a new N at run time."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter
from rich.table import Table

from fanout import aio
from fanout.cli import options
from fanout.cli.console import plain, stdout
from fanout.cli.decisions import log
from fanout.cli.exits import Exit
from fanout.client import Fanout, connect
from fanout.errors import UsageError
from fanout.settings import LARGEST_N, Endpoint, Settings
from fanout.store import EndpointInfo

endpoint = App(
    name="endpoint",
    help="Show or change N of the endpoints while workers run.",
    help_format="plaintext",
)

Target = Annotated[
    str, Parameter(help="An endpoint, or a tier that has one.", allow_leading_hyphen=False)
]


@endpoint.default
@endpoint.command(name="list")
def show(
    name: Annotated[
        str | None, Parameter(help="An endpoint or a tier; default: all of them.")
    ] = None,
    *,
    redis: options.Redis = None,
) -> int:
    """Show N of the endpoints, each worker's part of it, and the state of its circuit."""
    return aio.run(_show(redis, name))


@endpoint.command(name="set")
def change(
    name: Target,
    *,
    concurrency: Annotated[
        int,
        Parameter(name=["--concurrency", "-j"], help="New N: up at once, down as requests finish."),
    ],
    redis: options.Redis = None,
) -> int:
    """Change N of an endpoint while workers run; it holds until `reset`, over restarts too.

    Example: fanout endpoint set heavy --concurrency 192
    """
    if not 0 <= concurrency <= LARGEST_N:
        raise UsageError(f"--concurrency is a number from 0 to {LARGEST_N}")
    return aio.run(_set(redis, name, concurrency))


@endpoint.command
def reset(name: Target, *, redis: options.Redis = None) -> int:
    """Go back to the N of the configuration, or of the controller where there is one."""
    return aio.run(_set(redis, name, None))


endpoint.command(log)


async def _show(redis: str | None, name: str | None) -> int:
    async with connect(redis) as fo:
        known = fo.settings.endpoint
        chosen = tuple(known.values()) if name is None else _named(fo.settings, name)
        circuits: dict[str, dict[str, str]] = {}
        for worker in await fo.store.workers():
            for endpoint_name, state in worker.circuits.items():
                circuits.setdefault(endpoint_name, {})[worker.name] = state
        headings = ("endpoint", "tier", "N", "worker", "part", "circuit")
        table = Table(*headings, box=None, padding=(0, 2))
        for one in chosen:
            await _add_rows(table, fo, one, circuits.get(one.name, {}))
        stdout.print(table)
    return Exit.CLEAN


async def _set(redis: str | None, name: str, concurrency: int | None) -> int:
    async with connect(redis) as fo:
        found = _named(fo.settings, name)
        if len(found) > 1:
            names = ", ".join(one.name for one in found)
            raise UsageError(f"tier {name!r} has several endpoints, name one: {names}")
        await fo.store.set_concurrency(found[0].name, concurrency)
    return await _show(redis, found[0].name)


def _named(settings: Settings, name: str) -> tuple[Endpoint, ...]:
    """The endpoint of that name, or those of the tier of that name.

    Raises:
        UsageError: there is neither.
    """
    known = settings.endpoint
    if name in known:
        return (known[name],)
    if found := tuple(one for one in known.values() if one.tier == name):
        return found
    raise UsageError(f"there is no endpoint or tier {name!r}; configured: {', '.join(known)}")


async def _add_rows(table: Table, fo: Fanout, one: Endpoint, circuits: dict[str, str]) -> None:
    info = await fo.store.endpoint(one.name)
    rows = sorted(info.parts.items()) or [("no worker", 0)]
    cells = [(plain(holder), str(part), _state(holder, circuits)) for holder, part in rows]
    cells += [
        (f"{plain(holder)} (silent)", str(part), "") for holder, part in sorted(info.ghosts.items())
    ]
    for position, row in enumerate(cells):
        head = (one.name, one.tier, _n(one, info)) if position == 0 else ("", "", "")
        table.add_row(*head, *row)


def _n(one: Endpoint, info: EndpointInfo) -> str:
    if info.concurrency is not None:
        return f"{info.concurrency} (configured: {one.concurrency})"
    if info.auto is not None:
        return f"{info.auto} (auto)"
    return str(one.concurrency)


def _state(holder: str, circuits: dict[str, str]) -> str:
    # A holder is a worker's name and what makes it unique.
    return circuits.get(holder.rpartition("/")[0], "")
