"""A circuit breaker an endpoint: one that is down must not attract requests.

    closed ──k failures in a row──> open ──it answers again──> half-open ──a reply──> closed
                                      ^                            │
                                      └──────── a failure ─────────┘

An endpoint that refuses everything has the fewest requests in flight, so the least loaded choice
would send it all there is. While its circuit is open it gets none; half open it gets one at a
time; after timeouts and broken replies that one is not an item's but a canary, a request for a few
tokens (`fanout_workers.health`). A Retry-After only makes a pause, without a state of its own: the
server has said when. A server that is full, and refuses beside what it works on, is none that is
down.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal

from fanout import Failure, Kind
from fanout.failures import MISFIT, RETRY_AFTER_MAX

log = logging.getLogger(__name__)

State = Literal["closed", "open", "half-open"]

#: Failures in a row that open a circuit. A refused connection says little about an item and much
#: about the server; a 500 or a timeout can be the item's own doing.
_IN_A_ROW = {Kind.CONNECT: 5, Kind.OVERLOAD: 5, Kind.REQUEST: 5, Kind.SERVER: 10, Kind.TIMEOUT: 10}
#: Failures that come at once if they come: a probe that runs for _ACCEPTED_S has been accepted. Its
#: reply may take minutes, in which the server would have nothing else to do.
_QUICK = frozenset({Kind.CONNECT, Kind.OVERLOAD, Kind.REQUEST})
_ACCEPTED_S = 1.0
#: Seconds before the first probe, doubled with each that fails.
_PAUSE_S = 0.5
_PAUSE_MAX_S = 5.0


class Circuit:
    """Whether one endpoint may be asked, by how the last requests there have ended.

    Outcomes carry the `epoch` in which their request began: what began before the last change of
    state says nothing about the endpoint now.

    Args:
        name: the endpoint's, for the log.
        clock: seconds that only grow.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self.state: State = "closed"
        self.epoch = 0
        #: Called after each change, in whatever state.
        self.on_change: Callable[[], None] = lambda: None
        self._failed = 0
        self._openings = 0
        self._why = ""
        self._resumes_at = 0.0
        self._probing = False
        self._is_quick = True
        self._probed_at = 0.0

    @property
    def allows(self) -> bool:
        """Whether a request may begin now."""
        if self.state == "closed":
            return not self._resumes_at or self._clock() >= self._resumes_at
        return self.state == "half-open" and not self._probing and self._is_quick

    @property
    def wants_canary(self) -> bool:
        """Whether the probe is to be a few tokens, and no item.

        After failures that come late an item would be a probe of many minutes.
        """
        return self.state == "half-open" and not self._probing and not self._is_quick

    @property
    def openings(self) -> int:
        """How often it has opened since it was closed last."""
        return self._openings

    @property
    def problem(self) -> str | None:
        """Why the endpoint is not asked, in words; None when it is, or would be."""
        if self.state == "half-open" and self.allows:  # all it waits for is an item
            return None
        if self.state == "closed":
            left = self._resumes_at - self._clock()
            return f"it asked for a pause, {left:.0f} s are left" if left >= 1 else None
        return f"the circuit is {self.state}: {self._why}"

    @property
    def resumes_in_s(self) -> float:
        """Seconds until a pause that the server asked for is over."""
        return max(0.0, self._resumes_at - self._clock())

    def begin(self) -> int:
        """Note that a request begins; returns its epoch."""
        if self.state == "half-open":
            self._probing, self._probed_at = True, self._clock()
        return self.epoch

    def answered(self, epoch: int) -> None:
        """A request has got an answer of the server, whatever is in it."""
        if epoch != self.epoch:
            if self.state == "open":  # it lives: no need to wait before the probe
                self._resumes_at = min(self._resumes_at, self._clock())
            return
        self._failed = 0
        if self.state == "half-open":
            self._close()

    def failed(self, epoch: int, failure: Failure, *, is_busy: bool = False) -> None:
        """A request has failed; `is_busy` if the endpoint has others in work meanwhile."""
        least = _IN_A_ROW.get(failure.kind)
        if least is None or (failure.kind is Kind.REQUEST and failure.status not in MISFIT):
            self.answered(epoch)  # refused or no good, but an answer
            return
        if failure.retry_after and failure.kind is Kind.OVERLOAD:
            self._pause(min(failure.retry_after, RETRY_AFTER_MAX))
        if epoch != self.epoch or (is_busy and failure.kind is Kind.OVERLOAD):
            return
        self._failed += 1
        if self.state == "half-open":
            self.trip(failure.message, failure)
        elif self.state == "closed" and self._failed >= least and not self.resumes_in_s:
            self.trip(f"{self._failed} failures in a row: {failure.message}", failure)

    def given_up(self, epoch: int) -> None:
        """A request has ended without saying anything about the server."""
        if epoch == self.epoch and self._probing:
            self._probing = False
            self.on_change()

    def trip(self, why: str, cause: Failure | None = None) -> None:
        """Open it, whatever it was; without a `cause` an item can be the probe."""
        if self.state == "closed":
            log.warning("endpoint %s: its circuit is open: %s", self._name, why)
        self._why, self._is_quick = why, cause is None or _comes_at_once(cause)
        pause = min(_PAUSE_S * 2.0 ** min(self._openings, 10), _PAUSE_MAX_S)
        self._openings += 1
        self._resumes_at = max(self._resumes_at, self._clock() + pause)
        self._become("open")

    def looked_at(self, why_not: str | None) -> None:
        """The endpoint was looked at, and seems well or, with a reason, not.

        An open circuit becomes half open when the endpoint is well and its pause is over, and
        closed when it has accepted a probe.
        """
        if self.state == "half-open" and self._probing and why_not is None:
            if self._is_quick and self._clock() >= self._probed_at + _ACCEPTED_S:
                self._close()
            return
        if self.state != "open":
            return
        if why_not is not None:
            self._why = why_not
        elif self._clock() >= self._resumes_at:
            self._become("half-open")

    def _close(self) -> None:
        log.warning("endpoint %s answers again: its circuit is closed", self._name)
        self._openings = 0
        self._become("closed")

    def _pause(self, seconds: float) -> None:
        until = self._clock() + seconds
        if until > self._resumes_at:
            self._resumes_at = until
            self.on_change()

    def _become(self, state: State) -> None:
        self.state = state
        self.epoch += 1
        self._failed = 0
        self._probing = False
        if state != "open":
            self._resumes_at = 0.0
        self.on_change()


def _comes_at_once(failure: Failure) -> bool:
    # A server that hangs up may do so for what is in the item, which is no probe then.
    return failure.kind in _QUICK and not failure.hung_up
