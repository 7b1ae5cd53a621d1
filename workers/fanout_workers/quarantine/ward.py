"""One child process, and the items that are in it."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from tempfile import TemporaryFile
from typing import Any

from fanout_workers.quarantine.mark import Mark

#: Bytes of the longest line between the two processes.
LONGEST = 2**30
#: Seconds that the child has to end once it has nothing to do.
_GRACE_S = 5.0


def encoded(words: dict[str, Any]) -> bytes:
    """A line between the two processes; also lone surrogates and large numbers come through."""
    return json.dumps(words, default=str).encode() + b"\n"


class Suspect:
    """An item that may have ended its worker.

    Args:
        order: what the child needs to run it, as JSON types.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        #: What the child says of it; an exception if nobody can say anything.
        self.said: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        #: How often a process has ended in which it was alone.
        self.deaths = 0


class Ward:
    """A child process with the suspects in it.

    Args:
        command: the child's; the descriptors of its socket and of its mark are added to it.
        on_empty: called as the last one leaves it.
        on_end: called once it has ended, with those of whom it has said nothing.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_empty: Callable[[Ward], None],
        on_end: Callable[[Ward, list[Suspect]], None],
    ) -> None:
        self._command = command
        self._on_empty = on_empty
        self._on_end = on_end
        self._inside: dict[int, Suspect] = {}
        self._next = 0
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: list[bytes] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._mark_file = TemporaryFile()  # noqa: SIM115 - as long as the process
        self._mark_file.truncate(mmap.PAGESIZE)
        #: In whose code the process was when it ended, if in anybody's.
        self.culprit: Suspect | None = None
        #: It has begun to run items: what ends it from then on may be one of them.
        self.ready = False
        #: It takes no more.
        self.closing = False
        # Without a context: that of the first item would be kept alive.
        self._serving = asyncio.create_task(self._serve(), name="quarantine", context=Context())

    def __len__(self) -> int:
        return len(self._inside)

    @property
    def status(self) -> str:
        """How the process has ended, in words."""
        code = self._process.returncode if self._process else None
        if code is not None and code < 0:
            with suppress(ValueError):
                return signal.Signals(-code).name
        return f"status {code}"

    def admit(self, suspects: Iterable[Suspect]) -> None:
        """Run these."""
        for suspect in suspects:
            self._inside[self._next] = suspect
            self._tell({"n": self._next, **suspect.order})
            self._next += 1

    def forget(self, suspect: Suspect) -> None:
        """Nobody waits for this one any more."""
        for number, inside in self._inside.items():
            if inside is suspect:
                self._tell({"n": number, "cancel": True})
                return

    def stop(self) -> None:
        """Finish what is in flight, and send the rest back."""
        self._tell({"stop": True})

    def close(self) -> None:
        """Let the process end: nothing is in it any more, or nobody cares."""
        self.closing = True
        if self._writer is not None:
            self._writer.close()

    async def ended(self) -> None:
        """Wait for the end."""
        await asyncio.wait([self._serving])

    def _tell(self, words: dict[str, Any]) -> None:
        line = encoded(words)
        if self._writer is None:
            self._waiting.append(line)
        elif not self._writer.is_closing():
            self._writer.write(line)

    async def _serve(self) -> None:
        try:
            reader = await self._start()
            while line := await reader.readline():
                self._hear(json.loads(line))
        except (OSError, ValueError):  # it is gone, or has gone mad
            pass
        finally:
            self.close()
            await self._reap()
            self._look_at_mark()
            left = [suspect for suspect in self._inside.values() if not suspect.said.done()]
            self._inside.clear()
            self._on_end(self, left)

    async def _start(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), self._mark_file.fileno())
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own, and it is quick
                [*self._command, *map(str, fds)],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
                # Ctrl-C is for the worker, which tells the child.
                start_new_session=True,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=LONGEST)
        for line in self._waiting:
            self._writer.write(line)
        self._waiting.clear()
        if self.closing:
            self._writer.close()
        return reader

    def _hear(self, said: dict[str, Any]) -> None:
        if "ready" in said:
            self.ready = True
            return
        suspect = self._inside.pop(said["n"], None)
        if suspect is not None and not suspect.said.done():
            suspect.said.set_result(said)
        if not self._inside:
            self._on_empty(self)

    def _look_at_mark(self) -> None:
        with self._mark_file:
            mark = Mark(self._mark_file.fileno())
        number = mark.read()
        mark.close()
        self.culprit = None if number is None else self._inside.get(number)

    async def _reap(self) -> None:
        process = self._process
        if process is None:
            return
        deadline = asyncio.get_running_loop().time() + _GRACE_S
        while process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                deadline = float("inf")
            await asyncio.sleep(0.02)
