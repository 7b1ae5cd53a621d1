"""Child processes: signalled, suspended, started again, and looked for at the end."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1


class Child:
    """One process in a session of its own, which dies with this one.

    Args:
        name: for messages; names its log too.
        command: what to run.
        folder: its current folder, where its log is.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.pids: list[int] = []
        self._command = list(command)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs, suspended or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def code(self) -> int | None:
        """How it ended: the exit code, or minus the signal."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it; must be called from the main thread, with which it dies."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        self.pids.append(self._process.pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it lives."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def suspend(self, for_s: float) -> None:
        """SIGSTOP, and SIGCONT after a while to the same process."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(for_s)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)

    def limit_files(self, size: int) -> None:
        """Let no file of it grow beyond `size` bytes: a full disk for one process."""
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                resource.prlimit(
                    self._process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)
                )

    async def ended(self, within_s: float = float("inf")) -> bool:
        """Wait for its end; whether it came in time."""
        deadline = time.monotonic() + within_s
        while self.alive:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def stop(self, number: signal.Signals, within_s: float) -> bool:
        """End it with a signal; killed, and False, when that takes longer."""
        self.send(number)
        self.send(signal.SIGCONT)
        if await self.ended(within_s):
            return True
        self.send(signal.SIGKILL)
        await self.ended()
        return False


class Supervised(Child):
    """A process that is started again whenever it ends, as systemd does it.

    Args:
        restart: whether to do so after this exit code.
        pause_s: seconds before.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        restart: Callable[[int], bool],
        pause_s: float = 0.5,
    ) -> None:
        super().__init__(name, command, folder)
        self.codes: list[int] = []
        self._restart = restart
        self._pause_s = pause_s
        self._retired = False

    def retire(self) -> None:
        """SIGTERM, and no other after it."""
        self._retired = True
        self.send(signal.SIGTERM)

    def release(self) -> None:
        """Start no other from now on."""
        self._retired = True

    async def run(self) -> None:
        """Start it, and again, until it ends for good."""
        while True:
            self.start()
            await self.ended()
            assert self.code is not None
            self.codes.append(self.code)
            if self._retired or not self._restart(self.code):
                return
            await asyncio.sleep(self._pause_s)
            if self._retired:
                return


def left_behind(folder: Path, pids: Sequence[int]) -> list[str]:
    """Command lines of processes that still live: of the groups `pids`, or in `folder`."""
    groups, found = set(pids), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat = (process / "stat").read_text().rpartition(")")[2].split()
            state, group, session = stat[0], int(stat[2]), int(stat[3])
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            inside = (process / "cwd").resolve().is_relative_to(folder.resolve())
        except (OSError, RuntimeError, ValueError, IndexError):
            continue
        if state != "Z" and ({group, session} & groups or (line and inside)):
            found.append(f"{process.name} {line}")
    return found


def _environment() -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FANOUT_")}
    return {**clean, "COLUMNS": "200"}


def die_with_parent() -> Callable[[], None] | None:
    """What a child calls before it becomes its command, so that nothing outlives this process."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # A file that may not grow (`limit_files`) is an error, as on a full disk, and not the end.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    return prepare
