"""One collector a job: two would take each other's records away, and neither output be whole.

The claim is a key in Redis that ends unless it is renewed. A collector that has been killed lets go
of it at once on its own host, where its end can be seen; elsewhere when the key ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from contextlib import suppress

from fanout.aio import ended
from fanout.errors import Collected, Unavailable
from fanout.lifeline import Lifeline, common_folder
from fanout.store import Store

log = logging.getLogger(__name__)

#: Seconds for which a claim lasts, and between two renewals.
TTL_S = 15.0
_EVERY_S = 5.0
#: Seconds between two looks at the claim of somebody who cannot be seen from here.
_LOOK_S = 0.5


class Claim:
    """This process's claim to collect a job.

    Args:
        store: where the job is.
        job: its id.
        ttl_s: seconds for which it lasts without a renewal.
    """

    def __init__(self, store: Store, job: str, ttl_s: float = TTL_S) -> None:
        self._store = store
        self._job = job
        self._ttl_s = ttl_s
        self._holder = f"{os.getpid()} {socket.gethostname()} {uuid.uuid4().hex}"
        self._lifeline = Lifeline(self._holder, common_folder())
        self._renewing: asyncio.Task[None] | None = None
        self._taken_by: str | None = None

    async def take(self) -> None:
        """Be the collector, as soon as the one before is certainly gone; again is the same.

        Raises:
            Collected: somebody else collects.
            Unavailable: Redis has been away for too long.
        """
        if self._renewing is not None:
            return
        self._lifeline.open()
        try:
            await self._take()
        except BaseException:
            self._lifeline.close()
            raise
        self._renewing = asyncio.create_task(self._renew(), name=f"claim of {self._job}")

    def check(self) -> None:
        """Look whether it holds; raises `Collected` when somebody else has taken the job over."""
        if self._taken_by is not None:
            raise self._refusal(self._taken_by)

    async def let_go(self) -> None:
        """Let others collect."""
        if self._renewing is None:
            return
        await ended(self._renewing)
        self._renewing = None
        with suppress(Unavailable):  # it ends by itself
            await self._store.unclaim(self._job, self._holder)
        self._lifeline.close()

    async def _take(self) -> None:
        # One that is alive renews its claim: who still holds it after this long is.
        deadline = time.monotonic() + self._ttl_s + 1.0
        gone = ""
        while True:
            holder = await self._store.claim(self._job, self._holder, self._ttl_s, gone)
            if holder == self._holder:
                return
            if self._lifeline.is_dead(holder):
                gone = holder
                continue
            if self._lifeline.is_here(holder) or time.monotonic() > deadline:
                raise self._refusal(holder)
            await asyncio.sleep(_LOOK_S)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S * self._ttl_s / TTL_S)
            try:
                holder = await self._store.claim(self._job, self._holder, self._ttl_s)
            except Unavailable as error:
                log.warning("the claim to collect job %s is not renewed: %s", self._job, error)
                continue
            if holder != self._holder:  # this process was stopped, or cut off, for longer
                self._taken_by = holder
                return

    def _refusal(self, holder: str) -> Collected:
        pid, host, _ = holder.split(" ")
        return Collected(
            f"job {self._job} is being collected by process {pid} on {host}: only one can"
        )
