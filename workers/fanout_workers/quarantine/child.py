"""The child process: runs the items that come on a socket, until that is closed."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Mapping
from contextvars import copy_context
from typing import Any

from fanout import Item, Settings, Task
from fanout_workers import watchdog
from fanout_workers.quarantine.errors import ERRORS
from fanout_workers.quarantine.mark import Mark, current
from fanout_workers.quarantine.ward import LONGEST, encoded
from fanout_workers.runtime import Runtime
from fanout_workers.watchdog import Pulse, Watchdog

log = logging.getLogger(__name__)

#: Seconds from the end of the worker until the process ends, whatever it does.
_ORPHAN_S = 3.0


def serve(
    settings: Settings,
    tier: str,
    name: str,
    kinds: Mapping[str, type[Task]],
    fd: int,
    mark: int,
) -> int:
    """Run what comes on a socket; returns the process's exit code.

    Args:
        settings: as for a worker, with the three that follow.
        tier: the tier to serve.
        name: the process's name.
        kinds: the task kinds it can run.
        fd: descriptor of the socket.
        mark: that of the file for `Mark`.
    """
    # A supervisor may send these to a whole group: it is the worker that tells its child.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    end = socket.socket(fileno=fd)
    threading.Thread(target=_end_with, args=(os.dup(fd),), daemon=True).start()
    runtime = Runtime(settings, tier, name, kinds, steers=False)
    asyncio.run(_Child(runtime, Mark(mark), settings.stuck_after_s).serve(end))
    return 0


def _on_stuck(_: str, fault: str) -> None:
    log.critical("%s: the quarantine ends\n%s", fault, watchdog.stacks())
    watchdog.end_process()


def _end_with(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP and POLLERR are always told
    poll.poll()
    time.sleep(_ORPHAN_S)
    os._exit(1)


class _Child:
    def __init__(self, runtime: Runtime, mark: Mark, stuck_after_s: float) -> None:
        self._stuck_after_s = stuck_after_s
        self._runtime = runtime
        self._mark = mark
        self._running: dict[int, asyncio.Task[None]] = {}
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, end: socket.socket) -> None:
        reader, self._writer = await asyncio.open_connection(sock=end, limit=LONGEST)
        await self._runtime.open()
        loop = asyncio.get_running_loop()
        self._mark.follow(loop)
        rounds = Pulse("the event loop", loop.call_soon_threadsafe)
        rounds.beat()  # it does now: the first item may stop it before the first look
        dog = Watchdog({"loop": rounds}, _on_stuck)
        dog.start(self._stuck_after_s)
        self._say({"ready": True})
        while line := await reader.readline():
            self._obey(json.loads(line))
        # Nobody waits for these: the worker has ended, and they are handed out again.
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._runtime.close()

    def _obey(self, words: dict[str, Any]) -> None:
        if "stop" in words:
            self._runtime.begin_stop()
            return
        number = words["n"]
        if "cancel" in words:
            if number in self._running:
                self._running[number].cancel()
            return
        context = copy_context()
        context.run(current.set, number)
        running = asyncio.create_task(self._run(number, words), context=context)
        self._running[number] = running

    async def _run(self, number: int, words: dict[str, Any]) -> None:
        said: dict[str, Any]
        try:
            item = Item.model_validate(words["item"])
            record = await self._runtime.runner.run(
                words["kind"], item, words["params"], words["request_id"]
            )
            said = {"record": record.model_dump()}
        except tuple(ERRORS.values()) as error:
            said = {"error": type(error).__name__, "message": str(error)}
        except asyncio.CancelledError:
            said = {"error": "RuntimeError", "message": "cancelled"}  # nobody hears it
        except Exception as error:  # noqa: BLE001 - the worker raises it
            said = {"error": "RuntimeError", "message": repr(error)}
        finally:
            del self._running[number]
        self._say({"n": number, **said})

    def _say(self, words: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encoded(words))
