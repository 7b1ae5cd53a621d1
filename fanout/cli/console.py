"""Where a person reads: progress and complaints on stderr, data on stdout.

Documents, file names and replies are data: they pass through `plain` before they reach a terminal.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from rich.console import Console
from rich.text import Text

from fanout.cli.streams import mend_streams
from fanout.text import safe

#: Columns where there is no terminal to ask: wide enough that nothing is folded in a log.
_WIDTH = 160


def _console(file: TextIO) -> Console:
    # rich honours NO_COLOR and leaves colour out where nobody sees it.
    wide = None if file.isatty() or os.environ.get("COLUMNS") else _WIDTH
    return Console(file=file, width=wide, highlight=False, markup=False)


# First of all: a file that was opened before would have the number of a closed stream.
mend_streams()
#: Progress and messages.
stderr = _console(sys.stderr)
#: Tables that a command was asked for.
stdout = _console(sys.stdout)


def plain(text: object, limit: int | None = None, *, lines: bool = False) -> str:
    """Text that cannot steer a terminal, nor pass for a line of its own.

    Args:
        text: from anywhere.
        limit: characters that are shown, with an ellipsis for the rest.
        lines: keep the ends of lines and the tabs.
    """
    shown = safe(str(text), lines=lines)
    if limit is not None and len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return shown


def complain(message: str, *, lines: bool = False) -> None:
    """One sentence on stderr about what is wrong, on one line unless `lines`."""
    stderr.print(
        Text.assemble(("fanout: ", "bold red"), plain(message, lines=lines)), soft_wrap=True
    )


def note(message: str) -> None:
    """One line on stderr about what goes on."""
    stderr.print(Text(plain(message)), soft_wrap=True)
