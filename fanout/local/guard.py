"""Runs one command and makes sure that it does not outlive the process that asked for it.

Usage: `python guard.py PARENT_PID ORPHAN_GRACE_S COMMAND...`, with a stream socket as stdin.

The guard sits between a parent and the command, because neither of the two ways to tie a child
to its parent is enough alone: `PR_SET_PDEATHSIG` exists on Linux only and follows the *thread*
that forked, so a child started from a short-lived thread would die with it; a pipe that the
command itself watches needs the command's help. The guard has one thread, so inside it
`PR_SET_PDEATHSIG` is exact, and it watches the parent in two ways: the socket's end of file, and
its own parent pid (a copy of the socket in some forked process could keep the socket open).

| event | what the guard does |
| --- | --- |
| `stop SECONDS\\n` on the socket | SIGTERM; after SECONDS SIGQUIT; then SIGKILL to its group |
| the parent is gone, or SIGTERM, SIGINT, SIGHUP | the same with ORPHAN_GRACE_S |
| the command ends | SIGKILL to what is left of its group |
| the guard itself is killed | Linux: the kernel kills the command |

It answers `pid N\\n` or `error MESSAGE\\n` on the socket once the command is started, and ends with
the command's exit status, or 128 + N when signal N ended it. Standard library only: it is run by
path with `-I -S`, so it starts in some 20 ms and nothing in the current folder can shadow it.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

PARENT_POLL_S = 0.5
#: Seconds between SIGQUIT and SIGKILL.
QUIT_GRACE_S = 2.0
_PR_SET_PDEATHSIG = 1
_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class _Watch:
    """Waits for the parent's word, the parent's end or a signal."""

    def __init__(self, channel: socket.socket, parent: int, orphan_grace_s: float) -> None:
        self._channel = channel
        self._parent = parent
        self._orphan_grace_s = orphan_grace_s
        self._signals, wake = socket.socketpair()
        wake.setblocking(False)
        # The socket must stay open as long as signals can arrive, so it is kept on the object.
        self._wake = wake
        signal.set_wakeup_fd(wake.fileno())
        for number in (*_STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._sources = [self._signals, channel]

    def stop_asked(self, timeout_s: float) -> float | None:
        """The grace in seconds if the command has to end now, None after an uneventful wait."""
        ready, _, _ = select.select(self._sources, [], [], timeout_s)
        if self._channel in ready:
            return self._word()
        if self._signals in ready and _STOP_SIGNALS & set(self._signals.recv(64)):
            return self._orphan_grace_s
        return self._orphan_grace_s if os.getppid() != self._parent else None

    def _word(self) -> float:
        try:
            word = self._channel.recv(64)
        except ConnectionError:
            word = b""
        if not word:  # end of file stays readable for ever and would make a busy loop
            self._sources.remove(self._channel)
            return self._orphan_grace_s
        return float(word.split()[-1])


def _die_with_guard() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork
    guard = os.getpid()

    def arm() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # the guard died before the signal was armed
            os._exit(1)

    return arm


def _supervise(child: subprocess.Popen[bytes], watch: _Watch) -> int:
    deadline: float | None = None
    hurried = False
    while child.poll() is None:
        left = PARENT_POLL_S if deadline is None else deadline - time.monotonic()
        if left <= 0:
            if hurried:
                break
            # A Celery worker gives back what it holds at SIGQUIT; killed, it leaves it to a
            # time-out of the queue. What knows no SIGQUIT ends at it.
            child.send_signal(signal.SIGQUIT)
            hurried, deadline = True, time.monotonic() + QUIT_GRACE_S
            continue
        grace_s = watch.stop_asked(min(left, PARENT_POLL_S))
        if grace_s is None:
            continue
        until = time.monotonic() + grace_s
        if deadline is None:
            child.terminate()
            deadline = until
        if not hurried:
            deadline = min(deadline, until)  # a second request can only hasten the end
    # macOS answers EPERM for a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    return status if status >= 0 else 128 - status


def main(argv: list[str]) -> int:
    """Run the command in `argv[3:]`; returns the exit status described above."""
    parent, orphan_grace_s, command = int(argv[1]), float(argv[2]), argv[3:]
    channel = socket.socket(fileno=sys.stdin.fileno())
    watch = _Watch(channel, parent, orphan_grace_s)
    try:
        # close_fds=False hands on what the parent passed on purpose (a lock file); everything
        # that Python opened itself is not inheritable.
        child = subprocess.Popen(  # noqa: S603 - the parent's own command
            command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            close_fds=False,
            preexec_fn=_die_with_guard(),
        )
    except OSError as error:
        channel.sendall(f"error {error.strerror}: {command[0]}\n".encode())
        return 127
    with contextlib.suppress(ConnectionError):  # the parent may be gone already
        channel.sendall(f"pid {child.pid}\n".encode())
    return _supervise(child, watch)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
