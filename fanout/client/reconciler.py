"""Sees that Redis has lost a part of a job that is under way, and has it mended.

Redis writes its log to disk once a second: killed, it comes back without its last second. It may
come back empty, be flushed, or a message may get lost on its way to a worker. The client knows what
it has submitted and what it has collected; whatever is neither settled, queued nor with a worker is
submitted again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from fanout.client.ledger import Ledger
from fanout.errors import JobError, Unavailable
from fanout.store import Checkpoint, Pulse, Store
from fanout.wire import Item, JobSpec

#: Seconds between two looks at what Redis knows of the job: one short call each.
_LOOK_S = 3.0
#: Seconds between two repairs, at least.
_REST_S = 5.0
#: Seconds without a record, with items open, before these are looked for; doubled with each time
#: they are found where they belong.
_QUIET_S = 20.0
_QUIET_MOST_S = 600.0


class Mendable(Protocol):
    """What a client knows of its job, and how it makes Redis know it too."""

    @property
    def outstanding(self) -> Mapping[int, Item]:
        """Items submitted whose records have not been collected, by ordinal."""

    @property
    def submitted(self) -> Checkpoint:
        """How far the input has been submitted, as Redis has confirmed."""

    @property
    def ledger(self) -> Ledger:
        """The records that have been collected."""

    async def mend(self, loss: str) -> None:
        """Make the store agree, submit again what is nowhere, and say so."""


class Reconciler:
    """Looks now and then whether Redis has lost something of a job.

    Args:
        store: where the job is.
        job: its id.
        spec: what its items share.
        client: what its client knows.
        tell: told in a sentence of what cannot be mended.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        store: Store,
        job: str,
        spec: JobSpec,
        client: Mendable,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._job = job
        self._spec = spec
        self._client = client
        self._tell = tell
        self._clock = clock
        self._run: str | None = None
        self._mended_at = -_REST_S
        self._moved_at = clock()
        self._seen = (0, 0)
        self._quiet_s = _QUIET_S

    async def run(self) -> None:
        """Look until cancelled; what does not answer is looked at again."""
        while True:
            with suppress(Unavailable):  # who feeds and who collects say so, and wait
                await self.look()
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """Look once, and have mended what is lost.

        Raises:
            Unavailable: Redis is away or refuses.
        """
        # Before the store is asked: what comes meanwhile must not look lost.
        submitted, collected = self._client.submitted.count, self._client.ledger.counts.total()
        if not submitted:
            return
        pulse = await self._store.pulse(self._job)
        if pulse.state in ("cancelled", "paused"):
            self._run = pulse.run
            return
        if self._clock() < self._mended_at + _REST_S:
            return
        loss = self._loss(pulse, submitted, collected) or await self._nowhere(submitted, collected)
        if loss is None:
            self._run = pulse.run
            return
        await self._mend(loss)
        self._run = pulse.run  # not before: a repair that fails has to come again

    def _loss(self, pulse: Pulse, submitted: int, collected: int) -> str | None:
        if pulse.state is None:
            return f"Redis does not know job {self._job} any more"
        if pulse.next < submitted or pulse.settled < collected:
            return f"Redis has lost a part of job {self._job}"
        if self._run is not None and pulse.run not in (None, self._run):
            return "Redis has started anew"
        return None

    async def _nowhere(self, submitted: int, collected: int) -> str | None:
        """Look for the open items themselves, where nothing has moved for long."""
        now = self._clock()
        if self._seen != (submitted, collected) or not self._client.outstanding:
            self._seen, self._moved_at, self._quiet_s = (submitted, collected), now, _QUIET_S
            return None
        if now < self._moved_at + self._quiet_s:
            return None
        missing = await self._store.missing(
            self._job, self._spec.tier, [n for n in self._client.outstanding if n < submitted]
        )
        if missing and self._seen == (submitted, self._client.ledger.counts.total()):
            return f"{len(missing)} items of job {self._job} are neither queued nor in work"
        self._moved_at, self._quiet_s = now, min(2 * self._quiet_s, _QUIET_MOST_S)
        return None

    async def _mend(self, loss: str) -> None:
        self._mended_at = self._clock()
        try:
            await self._client.mend(loss)
        except JobError as error:  # cancelled meanwhile, or gone on with by somebody else
            self._tell(f"{loss}, and that cannot be mended: {error}")
