"""What becomes of an item that is handed out: it runs, has ended already, or ends its worker.

A message comes again when its worker has ended without a word, or gave it back, or when its client
does not know what became of it. Such an item is looked up before it runs; a fresh one is
only noted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fanout import Item, Kind, Record
from fanout.queue import RESUBMITTED
from fanout.wire import ErrorInfo
from fanout_workers.item import ItemRunner
from fanout_workers.quarantine import NoQuarantine, Poison, Quarantine
from fanout_workers.transport import delivery_count

log = logging.getLogger(__name__)

#: From so many deliveries on that ended without a word an item runs in quarantine. After one it
#: runs in a worker again: workers are killed for reasons of all kinds, and all that was in flight
#: would have to wait for a process, and take permits for it from the others.
SUSPECT = 2
#: Deliveries that ended without a word after which an item is poison in any case: its quarantine
#: cannot be told from its worker where a whole container is ended for one process.
MOST_DELIVERIES = 20


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a message came.

    Attributes:
        count: how often it was handed out to a worker that ended without a word about it.
        again: whether its item may have run before.
    """

    count: int = 0
    again: bool = False

    @classmethod
    def of(cls, headers: Mapping[str, Any]) -> Delivery:
        """The delivery of a message, by its headers as Celery gives them to a task."""
        count = delivery_count(headers)
        info = headers.get("delivery_info")
        came_back = bool(isinstance(info, dict) and info.get("redelivered"))
        return cls(count, bool(count or came_back or headers.get(RESUBMITTED)))


class Deliveries:
    """Runs items as they are handed out; for one event loop.

    Args:
        runner: runs one item.
        quarantine: runs those that may have ended their worker; None = they run here.
    """

    def __init__(self, runner: ItemRunner, quarantine: Quarantine | None = None) -> None:
        self._runner = runner
        self._quarantine = quarantine
        #: Items of jobs that run here; the future is there once somebody waits for the end.
        self._running: dict[tuple[str, int], asyncio.Future[None] | None] = {}

    async def run(
        self, kind: str, item: Item, params: dict[str, Any], request_id: str, delivery: Delivery
    ) -> Record | None:
        """The record that ends the item; None if it had ended before.

        Raises:
            Stopping: the worker shuts down; the item is untouched and has to be run again.
            Unavailable: Redis did not tell what the job is, or whether the item has ended.
        """
        if item.job is None or item.ordinal is None:
            return await self._run_any(kind, item, params, request_id, delivery)
        key, waited = (item.job, item.ordinal), False
        while key in self._running:
            await self._end_of(key)
            waited = True
        self._running[key] = None
        try:
            if (waited or delivery.again) and await self._runner.has_ended(item):
                return None
            return await self._run_any(kind, item, params, request_id, delivery)
        finally:
            if (end := self._running.pop(key)) is not None:
                end.set_result(None)

    async def _end_of(self, key: tuple[str, int]) -> None:
        """Wait for the end of an item that runs here."""
        end = self._running[key]
        if end is None:
            end = self._running[key] = asyncio.get_running_loop().create_future()
        await asyncio.shield(end)

    async def _run_any(
        self, kind: str, item: Item, params: dict[str, Any], request_id: str, delivery: Delivery
    ) -> Record:
        if delivery.count < SUSPECT:
            return await self._runner.run(kind, item, params, request_id)
        return await self._run_apart(kind, item, params, request_id, delivery.count)

    async def _run_apart(
        self, kind: str, item: Item, params: dict[str, Any], request_id: str, count: int
    ) -> Record:
        if count >= MOST_DELIVERIES:
            return await self._poisoned(item, f"{count} workers ended while they had the item")
        if self._quarantine is not None:
            try:
                return await self._quarantine.run(kind, item, params, request_id)
            except Poison as poison:
                return await self._poisoned(item, str(poison))
            except NoQuarantine:
                pass
        return await self._runner.run(kind, item, params, request_id)

    async def _poisoned(self, item: Item, message: str) -> Record:
        log.error("item %.80r of job %s is poison: %s", item.id, item.job, message)
        return await self._runner.fail(item, ErrorInfo(kind=Kind.POISON, message=message))
