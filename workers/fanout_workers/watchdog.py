"""Ends a worker that lives and does nothing, so that its supervisor starts another one.

It looks from a thread of its own whether the event loop and Celery's hub go round, and whether
anything is delivered while there is something to deliver. What counts is how many looks in a row
find the same fault, not how much time has passed: a process that was suspended, or a machine that
was, has passed time without a chance to do anything, and its clocks may have jumped.

Code that keeps the interpreter's lock keeps this thread from looking, too. So each look sets an
alarm anew which the kernel raises once the process has used so much processor time since: it ends
the process by SIGPROF. A process that sleeps or is suspended uses none.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress

log = logging.getLogger(__name__)

#: The exit code of a worker that has ended itself (EX_TEMPFAIL of sysexits.h).
EXIT_STUCK = 75
#: Looks in the time after which a fault counts.
LOOKS = 12

#: A check: what is wrong now, in words, or None.
Check = Callable[[], str | None]


class Pulse:
    """A check of something that beats: wrong when it has not since the last look.

    Args:
        what: its name, for the log.
        ask: makes it beat soon; called at each look.
    """

    def __init__(self, what: str, ask: Callable[[Callable[[], None]], object] | None = None):
        self._what = what
        self._ask = ask
        self._beats = 0
        self._seen: int | None = None

    def beat(self) -> None:
        """It lives."""
        self._beats += 1

    def __call__(self) -> str | None:
        """The check. Before its first beat nothing is wrong."""
        seen, self._seen = self._seen, self._beats
        if self._ask is not None:
            with suppress(RuntimeError):  # closed
                self._ask(self.beat)
        return f"{self._what} does not go round" if self._beats and seen == self._beats else None


class Watchdog:
    """Counts the looks at which a check finds the same fault.

    Args:
        checks: by name.
        on_stuck: called once, on the watchdog's thread, with the name of a check and its words
            when it has found fault at `LOOKS` looks in a row.
    """

    def __init__(self, checks: Mapping[str, Check], on_stuck: Callable[[str, str], None]) -> None:
        self._checks = checks
        self._on_stuck = on_stuck
        self._faults = dict.fromkeys(checks, 0)
        self._ended = threading.Event()

    def look(self) -> bool:
        """Look once; True if that was enough."""
        for name, check in self._checks.items():
            fault = check()
            self._faults[name] = self._faults[name] + 1 if fault else 0
            if fault and self._faults[name] >= LOOKS:
                self._on_stuck(name, fault)
                return True
        return False

    def start(self, after_s: float) -> None:
        """Look from a thread, so often that a fault counts after `after_s` seconds."""
        every_s = after_s / LOOKS
        with suppress(AttributeError, OSError, RuntimeError, ValueError):  # there is no stderr
            faulthandler.register(signal.SIGPROF, chain=True)
        cpu_s = max(after_s, 2.0 * (os.cpu_count() or 1))
        # From here on: the first item may keep the thread from its first look.
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        threading.Thread(
            target=self._run, args=(every_s, cpu_s), name="watchdog", daemon=True
        ).start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def _run(self, every_s: float, cpu_s: float) -> None:
        # Short rests: many threads together use much processor time in a long one.
        rest_s = min(1.0, every_s)
        due = time.monotonic() + every_s
        while not self._ended.wait(rest_s):
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            if time.monotonic() < due:
                continue
            due = time.monotonic() + every_s
            try:
                if self.look():
                    break
            except Exception:
                log.exception("the watchdog stumbled")
        signal.setitimer(signal.ITIMER_PROF, 0)


def stacks() -> str:
    """Where each thread is: files and lines, nothing of what they work on."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident)}:\n{''.join(traceback.format_stack(frame)[-8:])}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )


def end_process(status: int = EXIT_STUCK) -> None:
    """End at once: what is stuck cannot be asked to."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(status)
