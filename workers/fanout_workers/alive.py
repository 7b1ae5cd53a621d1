"""`python -P -m fanout_workers.alive`: exit code 0 if a worker of this host has lately reported.

For health checks of containers, where one worker process runs in each.
"""

from __future__ import annotations

import asyncio
import platform
import sys

from fanout import FanoutError, connect
from fanout.keys import QUARANTINE


async def _alive() -> bool:
    async with connect() as fo:
        here = f"@{platform.node()}"
        names = [worker.name for worker in await fo.store.workers()]
        # A quarantine is a child of the worker: it may live while the worker hangs.
        return any(name.endswith(here) and not name.startswith(QUARANTINE) for name in names)


def main() -> int:
    """0 if one is alive, 1 if none is or Redis does not answer."""
    try:
        return 0 if asyncio.run(_alive()) else 1
    except FanoutError as error:
        print(error, file=sys.stderr)  # noqa: T201 - shown by `docker inspect`
        return 1


if __name__ == "__main__":
    sys.exit(main())
