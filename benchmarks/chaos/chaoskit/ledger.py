"""What Redis has to say when all jobs have ended."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaoskit.rig import Rig

_ENDED = ("ok", "invalid", "failed", "skipped", "cancelled")
#: Acknowledgements are sent with the next turn of a worker's loop, or after it has reconnected.
_EMPTY_S = 45.0


async def ledger_problems(rig: Rig) -> list[str]:
    """Whether counts add up, every bit is set, no record is left and no message is kept."""
    if any(event.fault.name in ("empty-redis", "torn-redis") for event in rig.plan.events):
        return []  # it knows nothing, or not all, of what was before
    told: list[str] = []
    found = await rig.ask_redis("ZRANGE", "fanout:jobs", "0", "-1", again=True)
    if len(found) != len(rig.jobs):
        told.append(f"Redis knows {len(found)} jobs, {len(rig.jobs)} were started")
    for name, job in zip((raw.decode() for raw in found), rig.jobs, strict=False):
        told += await _job_problems(rig, name, len(job.ids))
    foreign = any(event.fault.name == "rotten-tasks" for event in rig.plan.events)
    # A task that nobody here knows may be another worker's: it may stay.
    if not foreign and (kept := await _kept(rig)):
        told.append(kept)
    return told


async def _job_problems(rig: Rig, name: str, items: int) -> list[str]:
    key = f"fanout:job:{{{name}}}"
    raw = await rig.ask_redis("HGETALL", key, again=True)
    fields = {k.decode(): v.decode() for k, v in raw.items()} if isinstance(raw, dict) else {}
    counts = {status: int(fields.get(status, 0)) for status in _ENDED}
    bits = await rig.ask_redis("BITCOUNT", f"{key}:settled", again=True)
    records = await rig.ask_redis("XLEN", f"{key}:records", again=True)
    submitted = int(fields.get("submitted", 0))
    told = []
    if submitted != sum(counts.values()) or submitted != bits:
        told.append(f"job {name}: {submitted} submitted, {bits} bits, {counts}")
    if submitted != items and fields.get("state") != "cancelled":
        told.append(f"job {name}: {submitted} submitted of {items}")
    if records:
        told.append(f"job {name}: {records} records were not collected")
    return told


async def _kept(rig: Rig) -> str | None:
    """What is left in the queue or unacknowledged after everybody had the time to clear it."""
    deadline = time.monotonic() + _EMPTY_S
    while True:
        queued = await rig.ask_redis("LLEN", rig.queue, again=True)
        unacked = await rig.ask_redis("HLEN", "unacked", again=True)
        if not queued and not unacked:
            return None
        if time.monotonic() > deadline:
            return f"{queued} messages queued and {unacked} unacknowledged after the end"
        await asyncio.sleep(0.2)
