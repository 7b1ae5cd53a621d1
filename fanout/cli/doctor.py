"""`fanout doctor`: is everything as it has to be?"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from fanout import aio
from fanout.cli import options
from fanout.cli.console import plain, stdout
from fanout.cli.exits import Exit
from fanout.doctor import check
from fanout.settings import load_settings

_COLOUR = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    *,
    redis: options.Redis = None,
    max_tokens: Annotated[
        int, Parameter(help="Completion tokens of the work to come, for the timeout.")
    ] = 1024,
) -> int:
    """Check Redis, every endpoint and the workers, and say what is wrong."""
    settings = load_settings(redis=redis)
    findings = aio.run(check(settings, max_tokens=max_tokens))
    table = Table(box=None, padding=(0, 2), show_header=False)
    for finding in findings:
        table.add_row(
            Text(finding.level, style=_COLOUR[finding.level]),
            plain(finding.subject),
            plain(finding.check),
            Text(plain(finding.text, lines=True)),
        )
    stdout.print(table)
    return Exit.USAGE if any(finding.level == "fail" for finding in findings) else Exit.CLEAN
