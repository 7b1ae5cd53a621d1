"""The command `fanout`.

Exit codes: 0 done and clean; 1 items not ok; 2 usage, configuration, or something that does not
answer; 3 incomplete; 4 the budget ran out; 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnknownCommandError

from fanout import __version__
from fanout.cli.console import complain
from fanout.cli.exits import Exit
from fanout.cli.streams import silence_stdout
from fanout.errors import FanoutError, Stalled
from fanout.outputs import OutputClosed, OutputFailed

app = App(
    name="fanout",
    help="Keeps a self-hosted LLM server exactly full, and loses nothing on the way.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
# Named, not imported: a command pays only for what it uses.
_COMMANDS = {
    "extract": ("extract:extract", "Extract JSON records from documents."),
    "review": ("review:review", "Review source files, one request a file."),
    "agent": ("agent:agent", "Run sub-tasks at the same time and join their answers."),
    "status": ("jobs:status", "Show jobs with their counts."),
    "results": ("jobs:results", "Write the records of a job."),
    "retry": ("retry:retry", "Do again what has failed."),
    "verify": ("verify:verify", "Check that an output is whole."),
    "cancel": ("cancel:cancel", "Abort a job's requests and end what has not started."),
    "up": ("stack:up", "Start everything that is not configured."),
    "worker": ("stack:worker", "Run one worker process."),
    "flower": ("stack:flower", "Run Flower with fanout's columns."),
    "endpoint": ("endpoint:endpoint", "Show or change N of the endpoints while workers run."),
    # The load is a worker's part, and this package imports none of those.
    "sweep": ("fanout_workers.sweep.command:sweep", "Measure which N is right for a server."),
    "doctor": ("doctor:doctor", "Check Redis, every endpoint and the workers."),
    "sim": ("sim:sim", "Simulate a model server with vLLM's API, to try things on."),
    "demo": ("demo:demo", "Extract from a novel with a real model, start to finish."),
}
for _name, (_where, _help) in _COMMANDS.items():
    _module = "" if _where.startswith("fanout_workers.") else "fanout.cli."
    app.command(f"{_module}{_where}", name=_name, help=_help)


#: What a standard output says that takes nothing: closed, full, on a disk that fails.
_NOT_TAKEN = frozenset({errno.EBADF, errno.ENOSPC, errno.EDQUOT, errno.EIO})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and never shows a traceback for a user's mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    # A closed terminal or a polite kill ends a command as Ctrl-C does: cleaned up.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _as_interrupt)
    try:
        done = app(
            words,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()
    except CycloptsError as error:
        complain(_sentence(error, words))
        return Exit.USAGE
    except OutputClosed:
        return Exit.INCOMPLETE  # the reader of stdout has left: nothing is wrong, nobody to tell
    except (Stalled, OutputFailed) as error:
        complain(str(error))
        return Exit.INCOMPLETE
    except FanoutError as error:
        complain(str(error), lines=error.has_lines)
        return Exit.USAGE
    except BrokenPipeError:
        silence_stdout()
        return Exit.INCOMPLETE
    except OSError as error:
        if error.errno not in _NOT_TAKEN:
            raise
        silence_stdout()
        complain(f"standard output cannot be written: {error.strerror}")
        return Exit.INCOMPLETE
    except KeyboardInterrupt:
        complain("interrupted")
        # Everything has been cleaned up. A thread may still wait for its terminal or pipe, and the
        # interpreter must not wait for that thread.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(Exit.INTERRUPTED)
    return done if isinstance(done, int) else Exit.CLEAN


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    # asyncio turns SIGINT into a cancellation; where SIGINT is ignored, as in a script's
    # background, there is only the exception.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _sentence(error: CycloptsError, words: Sequence[str]) -> str:
    command = next((word for word in words if word in _COMMANDS), None)
    if isinstance(error, UnknownCommandError) and command is None:
        return f"there is no command {words[0]!r}; commands: {', '.join(_COMMANDS)}"
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"{said} (see `fanout {f'{command} ' if command else ''}--help`)"
