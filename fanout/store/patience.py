"""A store that waits while Redis is away, and says so, instead of ending who uses it.

    store ── answers ──────────────────────────────────> goes on
      └──── does not, or is full, loading, read-only ──> waits, says since when, tries again
      └──── refuses for good (password, wrong type) ───> Unavailable, at once

Only calls that may be repeated wait. A first sign of life, a new job and what a display asks for do
not: who starts a command wants to know now.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from redis import exceptions

from fanout.durations import duration
from fanout.errors import Unavailable
from fanout.store.base import Store

log = logging.getLogger(__name__)

_T = TypeVar("_T")

#: The calls that wait. Each leaves the same when it is repeated after its reply was lost.
_WAITING = frozenset({
    "get", "submit", "reject", "seal", "pause", "cancel", "state", "read", "trim", "unread",
    "restore", "withdraw", "resubmit", "settled", "keep", "note_output", "endpoint", "missing",
    "claim",
})  # fmt: skip
#: Those of them that may take a while.
_SLOW = frozenset({"missing"})

#: Seconds between two tries: the first and the longest.
_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
#: Seconds of an absence before it is told of; a quick restart needs no words.
_TELL_S = 2.0
#: Seconds before it is told of again, doubled each time.
_AGAIN_S = 60.0
#: Seconds without an answer after which Redis counts as away, although nothing has failed yet.
_SILENT_S = 5.0

#: What passes: full, read-only, a replica that becomes the primary; and what redis-py has no class
#: for, by its first word.
_PASSING = (
    exceptions.OutOfMemoryError, exceptions.ReadOnlyError, exceptions.ClusterError,
    exceptions.TryAgainError,
)  # fmt: skip
_PASSING_WORDS = ("OOM", "MISCONF", "NOREPLICAS", "BUSY")


class Patience:
    """Whether Redis answers, and since when it does not.

    Args:
        name: Redis' address, for messages.
        limit_s: seconds of an absence after which it is given up.

    Attributes:
        tell: told in a sentence when it goes and when it is back; the log unless set.
        away_since: Unix time in seconds; None while it answers.
        problem: what it said last, while it is away.
    """

    def __init__(self, name: str, limit_s: float) -> None:
        self._name = name
        self._limit_s = limit_s
        self.tell: Callable[[str], None] = log.warning
        self.away_since: float | None = None
        self.problem = ""
        self._went_at = 0.0
        self._told = False
        self._tell_at = 0.0

    @property
    def away_s(self) -> float:
        """Seconds for which it has been away; 0 while it answers."""
        return 0.0 if self.away_since is None else time.monotonic() - self._went_at

    def words(self) -> str:
        """The absence in a sentence; empty while Redis answers."""
        if self.away_since is None:
            return ""
        since = time.strftime("%H:%M:%S", time.localtime(self.away_since))
        return f"waiting for Redis since {since} ({duration(self.away_s)}): {self.problem}"

    async def wait(self, call: Callable[[], Awaitable[_T]], *, slow: bool = False) -> _T:
        """What `call` returns, tried again for as long as Redis is away.

        Args:
            call: one call to Redis, or, if `slow`, many.
            slow: that it takes long says nothing.

        Raises:
            Unavailable: it refuses for good, or has been away for too long.
        """
        pause = _PAUSE_S
        while True:
            silent_s = math.inf if slow else _SILENT_S
            silence = asyncio.get_running_loop().call_later(silent_s, self._is_silent)
            try:
                result = await call()
            except Unavailable as error:
                if not passes(error):
                    raise
                self._is_away(str(error))
                if self.away_s > self._limit_s:
                    raise Unavailable(
                        f"given up after {duration(self.away_s)} of waiting: {error}"
                    ) from error
            else:
                self._is_back()
                return result
            finally:
                silence.cancel()
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE_S)

    def _is_silent(self) -> None:
        self._is_away(f"Redis at {self._name} does not answer", _SILENT_S)

    def _is_away(self, problem: str, already_s: float = 0.0) -> None:
        now = time.monotonic()
        if self.away_since is None:
            self.away_since, self._went_at = time.time() - already_s, now - already_s
            self._told, self._tell_at = False, self._went_at + _TELL_S
        self.problem = problem
        if now >= self._tell_at:
            self._told, self._tell_at = True, now + max(_AGAIN_S, now - self._went_at)
            self.tell(f"{self.words()}; items that run go on, nothing is lost")

    def _is_back(self) -> None:
        if self.away_since is None:
            return
        away_s, self.away_since = self.away_s, None
        if self._told:
            self.tell(f"Redis answers again, after {duration(away_s)}")


class _Patient:
    """`Store` over another one; each call that may be repeated waits."""

    def __init__(self, store: Store, patience: Patience) -> None:
        self._store = store
        self._patience = patience

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)
        if name not in _WAITING:
            return call

        async def waiting(*args: Any, **kwargs: Any) -> Any:
            return await self._patience.wait(lambda: call(*args, **kwargs), slow=name in _SLOW)

        setattr(self, name, waiting)  # made once
        return waiting


def patient(store: Store, patience: Patience) -> Store:
    """`store`, whose calls wait as `patience` says."""
    return cast(Store, _Patient(store, patience))


def passes(error: Unavailable) -> bool:
    """Whether what keeps Redis from answering may pass by itself."""
    cause = error.__cause__
    if isinstance(cause, (exceptions.AuthenticationError, exceptions.AuthorizationError)):
        return False
    if isinstance(cause, exceptions.ResponseError):
        return isinstance(cause, _PASSING) or str(cause).startswith(_PASSING_WORDS)
    return isinstance(cause, (exceptions.ConnectionError, exceptions.TimeoutError, OSError))
