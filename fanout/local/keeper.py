"""Starts processes again that have ended although nobody stopped them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from fanout.local.processes import LocalError, Process, Stack

#: The first pause before a process is started again, in seconds; it doubles up to the longest.
_PAUSE_S = 0.5
_LONGEST_S = 30.0
#: One that has lived so long, in seconds, begins anew with the shortest pause.
_LIVES_S = 60.0
#: Ends in a row after so short a life, in seconds, with which a process is given up.
_SHORT_S = 15.0
_MOST = 5
#: The exit status of a command that was called wrongly or is configured wrongly: it would end so
#: again each time.
_USAGE = 2


@dataclass(slots=True)
class _Life:
    started_at: float
    ended: bool = False
    due_at: float = 0.0
    pause_s: float = _PAUSE_S
    short: int = 0
    times: int = 0


class Keeper:
    """Looks after the processes of a stack.

    Args:
        stack: whose processes.
        say: told one line for each end and each start.
        once: processes that cannot be started again, because what they held is gone.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        stack: Stack,
        say: Callable[[str], None],
        once: Collection[Process] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stack = stack
        self._say = say
        self._once = once
        self._clock = clock
        self._lives = {process: _Life(clock()) for process in stack.processes}

    def look(self) -> Process | None:
        """Start again what has ended; the first process that is given up, if one is."""
        now = self._clock()
        for process in self._stack.processes:
            life = self._lives.setdefault(process, _Life(now))
            if process.alive:
                continue
            if not life.ended:
                if not self._bury(process, life, now):
                    return process
            elif now >= life.due_at:
                self._revive(process, life, now)
        return None

    def _bury(self, process: Process, life: _Life, now: float) -> bool:
        """Note an end; False if there shall be no other start."""
        lived_s = now - life.started_at
        if lived_s >= _LIVES_S:
            life.pause_s = _PAUSE_S
        life.short = life.short + 1 if lived_s < _SHORT_S else 0
        if process in self._once or process.returncode == _USAGE or life.short >= _MOST:
            return False
        life.ended, life.due_at = True, now + life.pause_s
        self._say(
            f"{process.name} ended ({meaning(process.returncode)}) after {lived_s:.0f} s; it is "
            f"started again in {life.pause_s:g} s. Its log: {process.log}"
        )
        life.pause_s = min(2 * life.pause_s, _LONGEST_S)
        return True

    def _revive(self, process: Process, life: _Life, now: float) -> None:
        life.ended, life.started_at = False, now
        life.times += 1
        try:
            process.start()
        except LocalError as error:
            self._say(str(error))  # it has ended at once, which the next look sees
        else:
            self._say(f"{process.name} started again (no. {life.times})")


def meaning(status: int | None) -> str:
    """An exit status in words; 128 + N is the end by signal N."""
    if status is not None and status > 128:
        with suppress(ValueError):
            return f"by {signal.Signals(status - 128).name}"
    known = {1: "with an error", 75: "it was stuck"}
    return f"status {status}" + (f": {known[status]}" if status in known else "")
