"""`python -P -m fanout.flower`: Flower on fanout's broker, as `fanout flower` starts it.

The Celery app is made here: `celery flower` would build one that imports a `celeryconfig.py`
from the current folder.
"""

from __future__ import annotations

import argparse
import os
import sys

from celery import Celery

from fanout.errors import FanoutError
from fanout.flower import CONFIG_FILE, check_access
from fanout.redis_url import tls_of
from fanout.settings import Settings, load_settings

EXIT_USAGE = 2


def main(argv: list[str] | None = None) -> int:
    """Run Flower until it is told to stop; returns the process's exit code."""
    options = _parser().parse_args(argv)
    try:
        check_access(options.address)
        settings = load_settings()
    except FanoutError as error:
        print(f"fanout flower: {error}", file=sys.stderr)  # noqa: T201 - the command's own words
        return EXIT_USAGE
    # Flower takes every FLOWER_* variable as an option, and these two decide who gets in.
    for name in ("FLOWER_ADDRESS", "FLOWER_UNIX_SOCKET"):
        os.environ.pop(name, None)
    exitcode = create_app(settings).start(
        argv=[
            "flower",
            f"--conf={CONFIG_FILE}",
            f"--port={options.port}",
            f"--address={options.address}",
        ]
    )
    return int(exitcode or 0)


def create_app(settings: Settings) -> Celery:
    """A Celery app that reads events and results; it runs no task."""
    app = Celery(
        "fanout.flower", broker=settings.redis_url, backend=settings.redis_url, set_as_current=True
    )
    app.conf.update(
        accept_content=["json"],
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"health_check_interval": 25, "socket_keepalive": True},
    )
    if (tls := tls_of(settings.redis_url)) is not None:
        # Flower's page of queues takes a way of its own to Redis, and reads no options in a URL.
        app.conf.broker_use_ssl = tls
    return app


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fanout flower")
    parser.add_argument("--port", type=int, default=5555)
    parser.add_argument("--address", default="127.0.0.1")
    return parser


if __name__ == "__main__":
    sys.exit(main())
