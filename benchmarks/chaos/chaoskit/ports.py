"""Ports that nobody else takes between being chosen and being listened on."""

from __future__ import annotations

import fcntl
import os
import random
import tempfile
from contextlib import suppress
from pathlib import Path

from fanout.local.probes import port_is_free

#: Below those that the system gives to outgoing connections, of which there are thousands here.
_FIRST, _LAST = 12_000, 32_000


class Ports:
    """Chooses ports, and keeps other schedules off them as long as this process lives."""

    def __init__(self) -> None:
        self.chosen: list[int] = []
        self._locks: list[int] = []
        self._folder = Path(tempfile.gettempdir()) / f"fanout-chaos-ports-{os.getuid()}"
        self._folder.mkdir(exist_ok=True)
        self._dice = random.SystemRandom()

    def choose(self) -> int:
        """One more."""
        while True:
            port = self._dice.randrange(_FIRST, _LAST)
            lock = os.open(self._folder / str(port), os.O_RDWR | os.O_CREAT, 0o600)
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if port_is_free(port):
                    self._locks.append(lock)
                    self.chosen.append(port)
                    return port
            os.close(lock)

    def release(self) -> None:
        """Let others have them."""
        for lock in self._locks:
            os.close(lock)
        self._locks = []
