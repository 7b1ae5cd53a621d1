"""Which suspects run together, and who is found out."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from fanout import Item, Record, Unavailable
from fanout_workers.attempts import Stopping
from fanout_workers.quarantine.errors import ERRORS
from fanout_workers.quarantine.ward import Suspect, Ward

log = logging.getLogger(__name__)

#: Child processes at a time, and the parts into which the items of one that has ended are divided.
_WARDS = 4
#: How often an item has to end a process, alone or seen at it: once may be an accident.
_DEATHS = 2
#: How often in a row a child process may end before it is ready until items run without one.
_FALSE_STARTS = 3
#: Seconds after which a child process ends that has nothing to do.
_IDLE_S = 10.0


class Poison(Exception):
    """The item ends its process each time; the message says how."""


class NoQuarantine(Exception):
    """No child process can be had: the item has to run in the worker itself."""


class Quarantine:
    """Runs suspects in child processes; for one event loop.

    Args:
        command: starts a child process; its number and what `Ward` adds are added to it.
        make: makes a ward.
        idle_s: seconds after which a child process ends that has nothing to do.
    """

    def __init__(
        self, command: Sequence[str], make: Callable[..., Ward] = Ward, idle_s: float = _IDLE_S
    ) -> None:
        self._command = command
        self._make = make
        self._idle_s = idle_s
        self._wards: set[Ward] = set()
        #: Takes those who come.
        self._open: Ward | None = None
        #: Parts of wards that have ended, and then those who came when there was no room.
        self._parts: deque[list[Suspect]] = deque()
        self._newcomers: list[Suspect] = []
        self._stopping = False
        self._started = 0
        self._false_starts = 0

    async def run(self, kind: str, item: Item, params: dict[str, Any], request_id: str) -> Record:
        """The record that ends the item; settled, if the item belongs to a job.

        Raises:
            Poison: it ended its process each time.
            NoQuarantine: it cannot be tried, as was found several times.
            Stopping, Released, Unavailable: as from the item's runner.
        """
        order = {
            "kind": kind,
            "item": item.model_dump(),
            "params": params,
            "request_id": request_id,
        }
        suspect = Suspect(order)
        self._newcomers.append(suspect)
        self._fill()
        try:
            said = await suspect.said
        except asyncio.CancelledError:
            for ward in self._wards:
                ward.forget(suspect)
            raise
        if "record" in said:
            return Record.model_validate(said["record"])
        raise ERRORS.get(said["error"], RuntimeError)(said["message"])

    def begin_stop(self) -> None:
        """Finish what is in flight, and send the rest back; on the loop."""
        self._stopping = True
        self._fill()
        for ward in self._wards:
            ward.stop()

    async def aclose(self) -> None:
        """End all child processes."""
        self._stopping = True
        wards = tuple(self._wards)
        for ward in wards:
            ward.close()
        for ward in wards:
            await ward.ended()

    def _fill(self) -> None:
        """Start what there is room for."""
        if self._stopping:
            self._send_back([suspect for part in self._parts for suspect in part])
            self._send_back(self._newcomers)
            self._parts.clear()
            self._newcomers = []
            return
        while self._parts and len(self._wards) < _WARDS:
            self._begin(self._parts.popleft())
        if not self._newcomers:
            return
        if self._open is None and len(self._wards) < _WARDS:
            self._open = self._begin([])
        if self._open is not None:
            self._open.admit(self._newcomers)
            self._newcomers = []

    def _begin(self, suspects: list[Suspect]) -> Ward:
        self._started += 1
        ward = self._make([*self._command, str(self._started)], self._on_empty, self._on_end)
        self._wards.add(ward)
        ward.admit(suspects)
        return ward

    def _on_empty(self, ward: Ward) -> None:
        if ward is self._open:
            asyncio.get_running_loop().call_later(self._idle_s, self._close_if_idle, ward)
        else:
            ward.close()

    def _close_if_idle(self, ward: Ward) -> None:
        if ward is self._open and not len(ward):
            self._open = None
            ward.close()

    def _on_end(self, ward: Ward, left: list[Suspect]) -> None:
        self._wards.discard(ward)
        if ward is self._open:
            self._open = None
        if ward.ready:
            self._false_starts = 0
        if self._stopping:
            self._send_back(left)
        elif left and ward.ready:
            self._divide(left, ward.culprit, ward.status)
        elif left:
            self._turn_away(left, ward.status)
        self._fill()

    def _turn_away(self, left: list[Suspect], status: str) -> None:
        """The process has not begun: that says nothing of the items."""
        self._false_starts += 1
        log.error("no quarantine: a child process ended with %s at its start", status)
        for suspect in left:
            if self._false_starts < _FALSE_STARTS:
                suspect.said.set_exception(Unavailable("there is no quarantine"))
            else:
                suspect.said.set_exception(NoQuarantine())

    def _divide(self, left: list[Suspect], culprit: Suspect | None, status: str) -> None:
        log.warning("a quarantine with %d items ended: %s", len(left), status)
        if culprit not in left:
            culprit = left[0] if len(left) == 1 else None
        if culprit is None:
            parts = min(len(left), _WARDS)
            self._parts.extend(left[part::parts] for part in range(parts))
            return
        culprit.deaths += 1
        if others := [suspect for suspect in left if suspect is not culprit]:
            self._parts.append(others)
        if culprit.deaths < _DEATHS:
            self._parts.append([culprit])
            return
        culprit.said.set_exception(
            Poison(f"the item ended the process that it ran in {culprit.deaths} times ({status})")
        )

    def _send_back(self, suspects: list[Suspect]) -> None:
        for suspect in suspects:
            if not suspect.said.done():
                suspect.said.set_exception(Stopping())
