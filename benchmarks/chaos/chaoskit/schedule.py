"""Runs one schedule and judges it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaoskit.faults import Fault
from chaoskit.ledger import ledger_problems
from chaoskit.logs import unexpected
from chaoskit.plan import Event, Fleet, Plan
from chaoskit.processes import left_behind
from chaoskit.rig import Job, Rig
from chaoskit.verdict import ids_problems, record_problems
from fanout.local.probes import port_is_free
from fanout_workers.intake import RESERVE

#: A schedule that is not done after so long, or has written nothing for so long, is stuck.
STUCK_S = 240.0
QUIET_S = 100.0
_LOOK_S = 0.1


@dataclass(slots=True)
class Outcome:
    """What a schedule came to; `problems` is empty when everything held."""

    seed: int
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    items: int = 0
    lost: int = 0
    twice: int = 0
    above_n: int = 0
    most_over_n: float = 0.0
    brief_s: float = 0.0
    asked_twice: int = 0
    allowed_twice: int = 0
    stuck: int = 0
    left_processes: int = 0
    quiet_s: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    struck: list[str] = field(default_factory=list)

    def line(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


async def run(plan: Plan, folder: Path) -> Outcome:
    """Run a schedule in an empty folder."""
    rig, outcome = Rig(plan, folder), Outcome(plan.seed)
    (folder / "plan.txt").write_text("\n".join(plan.lines()) + "\n")
    began = time.monotonic()
    try:
        await rig.start()
        rig.start_job()
        rig.say("the job is started")
        await _through(rig, outcome)
        await _judge(rig, outcome)
    except Exception as error:  # noqa: BLE001 - a schedule that cannot be run has failed
        outcome.problems.append(f"harness: {error!r}")
    finally:
        outcome.problems += [f"{name} did not end when told to" for name in await rig.stop()]
    _look_round(rig, outcome)
    outcome.seconds = round(time.monotonic() - began, 1)
    (folder / "outcome.json").write_text(outcome.line() + "\n")
    return outcome


async def _through(rig: Rig, outcome: Outcome) -> None:
    """Let the faults strike at their moments, and wait for the jobs' end."""
    deadline = time.monotonic() + STUCK_S
    moved, progress = time.monotonic(), -1
    waiting = list(rig.plan.events)
    striking: set[asyncio.Task[None]] = set()
    rates: list[tuple[float, int]] = []
    while not _all_done(rig) or not _all_struck(striking):  # a late fault may start a job
        written = sum(job.written for job in rig.jobs)
        now = time.monotonic()
        if written != progress or not _all_struck(striking):
            outcome.quiet_s = max(outcome.quiet_s, round(now - moved, 1))
            moved, progress = now, written
        if now > deadline or now > moved + QUIET_S:
            outcome.stuck = 1
            outcome.problems.append(f"stuck with {written} records written")
            rig.say(f"stuck with {written} records written")
            break
        rates = [*rates[-100:], (now, written)]
        share = rig.jobs[0].written / rig.plan.fleet.items
        while waiting and share >= waiting[0].share:
            striking.add(asyncio.create_task(_strike(rig, waiting.pop(0), outcome, rates)))
        await asyncio.sleep(_LOOK_S)
    rig.say("the jobs have ended")
    await _let_them_end(striking)
    outcome.struck = [type(e.fault).name for e in rig.plan.events if e not in waiting]


async def _strike(rig: Rig, event: Event, outcome: Outcome, rates: list[tuple[float, int]]) -> None:
    await asyncio.sleep(event.delay_s)
    rig.say(f"{event.fault}")
    if event.fault.may_ask_twice:
        rig.allow(event.fault.name, _repeated(rig.plan.fleet, event.fault, rates))
    try:
        await event.fault.strike(rig)
    except Exception as error:  # noqa: BLE001 - told with the others
        outcome.problems.append(f"harness: {event.fault.name}: {error!r}")
    rig.say(f"{event.fault.name} is over")


def _repeated(fleet: Fleet, fault: Fault, rates: list[tuple[float, int]]) -> int:
    """How many documents may be asked twice because of a fault that strikes now."""
    # What is in flight, and what was answered in the last second and may not be settled yet.
    then = [written for at, written in rates if at > time.monotonic() - 1.5]
    lately = max(then) - min(then) if then else 0
    if not fault.holds_on:
        return fleet.n + lately + 8
    # Workers go on with all that they hold: what is in flight, as much again that has ended and
    # cannot be settled, and their reserves, which are some items each and a tenth of a second's
    # work: N, where requests take that long.
    return 2 * (2 * fleet.n + fleet.workers * RESERVE) + lately + 8


async def _let_them_end(striking: set[asyncio.Task[None]]) -> None:
    if striking:
        _, late = await asyncio.wait(striking, timeout=60.0)
        for task in late:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def _all_struck(striking: set[asyncio.Task[None]]) -> bool:
    return all(task.done() for task in striking)


def _all_done(rig: Rig) -> bool:
    return all(job.task is not None and job.task.done() for job in rig.jobs)


async def _judge(rig: Rig, outcome: Outcome) -> None:
    """All that can be said while Redis and the endpoints live."""
    allowed = {kind for event in rig.plan.events for kind in event.fault.fails}
    for place, job in enumerate(rig.jobs):
        _judge_job(job, outcome, allowed if not place else allowed | {"cancelled"})
    outcome.problems += _worker_problems(rig)
    if not outcome.stuck:
        outcome.problems += await ledger_problems(rig)
        outcome.problems += await _verified(rig)
    for server in rig.servers:
        await server.close_book()
        book = server.book
        outcome.above_n += book.above
        outcome.brief_s = max(outcome.brief_s, round(book.brief_s, 4))
        largest = max(n for _, n in server.turns)
        outcome.most_over_n = max(outcome.most_over_n, round(book.most / largest, 3))
        outcome.asked_twice += book.twice
        if book.above:
            outcome.problems.append(f"{server.server.name}: {book.above} above N")
    outcome.allowed_twice = rig.allowance.total
    if outcome.asked_twice > rig.allowance.total:
        examples = [example for server in rig.servers for example in server.book.examples[:3]]
        outcome.problems.append(
            f"{outcome.asked_twice} asked twice, {rig.allowance.total} explained, {examples}"
        )


async def _verified(rig: Rig) -> list[str]:
    """What `fanout verify` finds."""
    told = []
    for job in rig.jobs:
        if (code := await rig.command("verify", job.output.name)) != 0:
            told.append(f"fanout verify {job.output.name} ended with {code}")
    return told


def _worker_problems(rig: Rig) -> list[str]:
    explained = {code for event in rig.plan.events for code in event.fault.worker_codes}
    return [
        f"{worker.name} ended with {worker.codes}"
        for worker in rig.workers
        if set(worker.codes) - explained
    ]


def _judge_job(job: Job, outcome: Outcome, allowed: set[str]) -> None:
    records = _records(job, outcome)
    found = Counter(record["id"] for record in records)
    lost, twice, told = ids_problems(_submitted(job, found), found)
    outcome.items += len(job.ids)
    outcome.lost += lost
    outcome.twice += twice
    outcome.problems += [f"{job.process.name}: {problem}" for problem in told]
    statuses, kinds, told = record_problems(job.ids, records, allowed, job.cancelled)
    outcome.statuses = dict(Counter(outcome.statuses) + statuses)
    outcome.kinds = dict(Counter(outcome.kinds) + kinds)
    outcome.problems += [f"{job.process.name}: {problem}" for problem in told]
    codes = job.process.codes
    clean = set(statuses) <= {"ok"}
    if not outcome.stuck and (not codes or codes[-1] != (0 if clean else 1)):
        outcome.problems.append(f"{job.process.name} ended with {codes}")


def _submitted(job: Job, found: Counter[str]) -> list[str]:
    """The documents that a job has come to: all, unless it was cancelled.

    They are submitted in their order, and the ledger and `fanout verify` say how many there were.
    """
    if not job.cancelled:
        return job.ids
    last = max((place for place, name in enumerate(job.ids) if name in found), default=-1)
    return job.ids[: last + 1]


def _records(job: Job, outcome: Outcome) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    lines = job.output.read_bytes().splitlines() if job.output.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            outcome.problems.append(f"{job.output.name}:{number} is no JSON: {line[:80]!r}")
    return records


def _look_round(rig: Rig, outcome: Outcome) -> None:
    """What is left when everything has ended, and what the logs say."""
    left = left_behind(rig.folder, rig.pids)
    outcome.left_processes = len(left)
    outcome.problems += [f"left: {line}" for line in left]
    outcome.problems += [
        f"port {port} is still taken" for port in rig.ports.chosen if not port_is_free(port)
    ]
    rig.ports.release()
    outcome.problems += unexpected(rig.folder, [event.fault for event in rig.plan.events])
