"""Child processes that are started in order, stopped in reverse and never outlive their parent.

Every child runs under `fanout.local.guard`, which ends it when this process ends, however it
ends. See there for the reasons and for what happens at which event.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from fanout.errors import FanoutError
from fanout.signals import handled

from . import guard

ORPHAN_GRACE_S = 5.0
# By path, isolated and without site-packages: nothing that is installed or lies in the current
# folder can keep the guard from starting.
_GUARD = (sys.executable, "-I", "-S", guard.__file__)
_POLL_S = 0.05
_START_S = 20.0
_TAIL_BYTES = 16_384
_GUARD_MARGIN_S = 5.0


class LocalError(FanoutError):
    """A local process cannot be started, is not ready in time or ended unasked."""

    has_lines = True


class Process:
    """One child process; output goes to `log`, which is appended to.

    `env` is added to this process's environment. `keep_fds` are file descriptors that stay open
    in the child (a lock that must live as long as it does). Nothing runs before `start()`.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        keep_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.argv = [str(part) for part in argv]
        self.log = log
        self.pid: int | None = None
        self._env = dict(env or {})
        self._cwd = cwd
        self._keep_fds = tuple(keep_fds)
        self._guard: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._log_start = 0

    def __repr__(self) -> str:
        return f"<Process {self.name} pid={self.pid} returncode={self.returncode}>"

    @property
    def alive(self) -> bool:
        """True from `start()` until the child has ended."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit status, 128 + N when signal N ended the child, None before the end."""
        return None if self._guard is None else self._guard.poll()

    def start(self) -> None:
        """Start the child; raises LocalError if it runs already or cannot be executed."""
        if self.alive:
            raise LocalError(f"{self.name} is running already.")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        with self.log.open("ab") as output, theirs:
            self._log_start = output.tell()
            self._guard = subprocess.Popen(  # noqa: S603 - our own guard
                [*_GUARD, str(os.getpid()), str(ORPHAN_GRACE_S), *self.argv],
                stdin=theirs.fileno(),
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._env},
                cwd=self._cwd,
                pass_fds=self._keep_fds,
                # A session of its own: Ctrl-C at the terminal reaches the parent alone, which
                # then stops its children in order.
                start_new_session=True,
            )
        self._channel = ours
        self.pid = self._started(ours)

    def _started(self, channel: socket.socket) -> int:
        channel.settimeout(_START_S)
        word = rest = ""
        with contextlib.suppress(TimeoutError), channel.makefile("r") as answer:
            word, _, rest = answer.readline().strip().partition(" ")
        if word == "pid":
            return int(rest)
        self.stop(0)
        raise LocalError(f"{self.name} cannot be started: {rest or self.tail() or 'no answer'}.")

    def stop(self, grace_s: float = 5.0) -> int | None:
        """SIGTERM to the child, after `grace_s` seconds SIGKILL to its whole process group.

        SIGTERM goes to the child alone, which knows how to end its own children; whoever is left
        of the group when it has ended is killed. Returns the exit status, None if never started.
        """
        if self._guard is None or self._channel is None:
            return self.returncode
        with contextlib.suppress(OSError):  # the guard has ended
            self._channel.sendall(f"stop {grace_s:.3f}\n".encode())
        try:
            self._guard.wait(grace_s + _GUARD_MARGIN_S)
        except subprocess.TimeoutExpired:
            for group in (self.pid, self._guard.pid):
                if group is not None:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(group, signal.SIGKILL)
            self._guard.wait()
        self._channel.close()
        self._channel = None
        return self.returncode

    def tail(self, lines: int = 15) -> str:
        """The last lines that the child has written since its start, at most 16 KiB of them."""
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


class Stack:
    """Owns several processes: started one after the other, stopped in reverse whatever happens.

    In the main thread SIGTERM and SIGHUP leave the `with` block like Ctrl-C does, as
    `SystemExit(128 + N)`; their former handlers come back at the end. A second interruption while
    stopping shortens the grace of everything that is left to nothing.
    """

    def __init__(self, *, grace_s: float = 5.0) -> None:
        self._grace_s = grace_s
        self._processes: list[Process] = []
        self._signals = contextlib.ExitStack()

    @property
    def processes(self) -> tuple[Process, ...]:
        """In the order of their start."""
        return tuple(self._processes)

    def ended(self) -> tuple[Process, ...]:
        """The processes that have ended although nobody stopped them."""
        return tuple(process for process in self._processes if not process.alive)

    def start(
        self,
        process: Process,
        *,
        ready: Callable[[], bool] | None = None,
        deadline_s: float = 30.0,
    ) -> Process:
        """Start `process` and poll `ready` until it is true.

        Raises LocalError with the last log lines if the process ends before or `deadline_s`
        seconds pass.
        """
        self._processes.append(process)
        process.start()
        deadline = time.monotonic() + deadline_s
        while ready is not None and not ready():
            if not process.alive:
                status = process.returncode
                raise LocalError(_with_tail(f"{process.name} ended with status {status}", process))
            if time.monotonic() > deadline:
                text = f"{process.name} was not ready within {deadline_s:g} s"
                raise LocalError(_with_tail(text, process))
            time.sleep(_POLL_S)
        return process

    def stop(self) -> None:
        """Stop all, the youngest first."""
        grace_s, interruption = self._grace_s, None
        while self._processes:
            try:
                self._processes[-1].stop(grace_s)
            except (KeyboardInterrupt, SystemExit) as error:
                grace_s, interruption = 0.0, error
                continue
            self._processes.pop()
        if interruption is not None:
            raise interruption

    def __enter__(self) -> Self:
        self._signals.enter_context(handled(_leave, signal.SIGTERM, signal.SIGHUP))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._signals:
            self.stop()


def _leave(number: int, frame: FrameType | None) -> None:
    # In a running event loop the exception would hit whichever task is at work, and be lost there;
    # asyncio.run turns a SIGINT into the cancellation of the whole.
    if asyncio._get_running_loop() and callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)
        return
    raise SystemExit(128 + number)


def _with_tail(text: str, process: Process) -> str:
    tail = process.tail()
    return f"{text}; its last log lines:\n{tail}" if tail else f"{text} and logged nothing."
