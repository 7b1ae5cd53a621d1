"""`python -P -m fanout_workers`: one worker process; `fanout worker` starts it.

`-P` keeps the current folder off the path, and the Celery app is built here rather than found by
`celery -A`, which would put that folder first: a `tasks.py` there must not shadow anything.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import warnings

from celery.exceptions import Reject, SecurityWarning

from fanout import FanoutError, load_settings
from fanout.garbage import collect_seldom
from fanout.keys import QUARANTINE
from fanout.registry import load_kinds
from fanout.text import safe
from fanout_workers import quarantine
from fanout_workers.app import create_app

EXIT_USAGE = 2


def main(argv: list[str] | None = None) -> int:
    """Run a worker until it is told to stop; returns the process's exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=options.loglevel.upper())
    for handler in logging.getLogger().handlers:
        handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # At INFO Celery logs what each task returns, and replies do not belong into logs.
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)
    logging.getLogger("celery.app.trace").addFilter(_is_no_requeue)
    logging.getLogger("celery.worker.strategy").setLevel(
        logging.WARNING
    )  # one line an item will do
    # Celery warns root of pickle, which this worker does not accept.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    name = options.name or f"fanout-{options.tier}-{os.getpid()}@{platform.node()}"
    try:
        settings = load_settings(redis=options.redis)
        for endpoint in settings.endpoint.values():
            endpoint.key()  # read now, where a person sees what is wrong with it
        tier, kinds = settings.tier_or_default(options.tier), load_kinds(options.task)
        if options.quarantine:
            number, *fds = options.quarantine
            return quarantine.serve(settings, tier, f"{QUARANTINE}{number}-{name}", kinds, *fds)
        app = create_app(settings, tier, name, kinds, command=_quarantine(name, argv))
    except FanoutError as error:
        print(f"fanout worker: {error}", file=sys.stderr)  # noqa: T201 - the command's own words
        return EXIT_USAGE
    worker = app.Worker(
        hostname=name,
        loglevel=options.loglevel.upper(),
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    collect_seldom()
    worker.start()
    return int(worker.exitcode or 0)


def _quarantine(name: str, argv: list[str] | None) -> list[str]:
    """The command of a quarantine: this one again, with the worker's name."""
    given = sys.argv[1:] if argv is None else argv
    return [
        *(sys.executable, "-P", "-m", "fanout_workers", *given),
        *("--name", name, "--quarantine"),
    ]


class SafeFormatter(logging.Formatter):
    """Keeps what servers and documents say from looking like a line, or steering a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return safe(super().format(record), lines=True)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return safe(super().formatMessage(record))


def _is_no_requeue(record: logging.LogRecord) -> bool:
    # Celery logs a traceback for each item that goes back into the queue when a worker stops.
    return not (record.exc_info and isinstance(record.exc_info[1], Reject))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fanout worker")
    parser.add_argument("--tier")
    parser.add_argument("--redis")
    parser.add_argument("--name")
    parser.add_argument("--task", action="append", default=[])
    parser.add_argument("--loglevel", default="info", choices=("debug", "info", "warning", "error"))
    # The process's number and two descriptors: see fanout_workers.quarantine.
    parser.add_argument("--quarantine", nargs=3, type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
