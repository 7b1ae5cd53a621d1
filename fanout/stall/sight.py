"""What can be seen of a job that gives no records, and the likeliest cause in words.

The order of the causes is that of the way of an item, from the end: what keeps records from being
taken hides everything before it.

    output ── Redis ── job ── workers ── task kind ── endpoints ── N ── queue ── server
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fanout.durations import duration
from fanout.server_metrics import ServerLoad
from fanout.store import JobState, WorkerInfo

#: What a cause is about; `--on-stall` hands it to its command.
Where = Literal[
    "output", "redis", "job", "worker", "kind", "endpoint", "quota", "held", "queue", "lost",
    "others", "server",
]  # fmt: skip

#: Seconds of silence that are nothing special, whatever the work.
LEAST_S = 30.0
#: Of these: for how long a batch may be on its way into the output before that is the cause, ...
_OUTPUT = 0.33
#: ... and without a token, with requests running, before a server counts as hanging for sure: long
#: prompts take a while to be read.
_TOKENLESS = 2.0
#: Names in one message.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Cause:
    """Why no record comes.

    Attributes:
        where: what it is about.
        words: the same as a clause, for a person.
        certain: whether nothing will come as long as it lasts; else it may be slow work.
    """

    where: Where
    words: str
    certain: bool = True


@dataclass(frozen=True, slots=True)
class ServerSight:
    """One endpoint as Redis, and maybe its own `/metrics`, show it.

    Attributes:
        name: the endpoint's.
        n: N in force.
        parts: of N, by the worker process that holds it.
        ghosts: of N, held back for worker processes that have gone.
        load: what the server says now; None = it cannot be reached from here, or does not say.
        tokens_per_s: completion tokens since the last look.
        tokenless_s: seconds for which it has made no token.
    """

    name: str
    n: int
    parts: Mapping[str, int] = field(default_factory=dict)
    ghosts: Mapping[str, int] = field(default_factory=dict)
    load: ServerLoad | None = None
    tokens_per_s: float | None = None
    tokenless_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """All that was seen in one look.

    Attributes:
        tier, kind: of the job.
        quiet_s: seconds since the last record; up to `least_s` they are nothing special.
        output_s, output_records: for how long the output has had the last batch, and its size.
        redis: what is wrong with Redis, in words; then nothing below is known.
        state, open: of the job, and its items that have not ended; None = Redis does not know it.
        workers: those of the tier that have reported lately.
        silent: seconds since others of the tier were last seen, by name.
        queued: messages in the tier's queue; `moved` if fewer or others than at the last look.
        endpoints: those of the tier.
        others: open items of other jobs of the tier whose items have ended since the last look.
    """

    tier: str
    kind: str
    quiet_s: float
    least_s: float = LEAST_S
    output_s: float = 0.0
    output_records: int = 0
    redis: str = ""
    state: JobState | None = "open"
    open: int = 0
    workers: Sequence[WorkerInfo] = ()
    silent: Mapping[str, float] = field(default_factory=dict)
    queued: int = 0
    moved: bool = False
    endpoints: Sequence[ServerSight] = ()
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def in_flight(self) -> int:
        """Requests of all workers of the tier."""
        return sum(sum(worker.in_flight.values()) for worker in self.workers)


def diagnose(sight: Sight) -> Cause:
    """The likeliest cause of the silence."""
    return next(_causes(sight))


def _causes(sight: Sight) -> Iterator[Cause]:
    if sight.output_s >= _OUTPUT * sight.least_s:
        yield Cause(
            "output",
            f"the output has not taken the last {sight.output_records} records in "
            f"{duration(sight.output_s)}: a full or hanging disk, or a reader that has stopped",
        )
    if sight.redis:
        yield Cause("redis", sight.redis)
    if sight.state is None:
        yield Cause("job", "Redis does not know the job any more")
    if sight.state == "paused":
        yield Cause("job", "the job has been paused from elsewhere")
    yield from _of_workers(sight)
    yield from _of_endpoints(sight)
    if sight.in_flight:
        yield from _of_servers(sight)
    else:
        yield from _of_permits(sight)


def _of_workers(sight: Sight) -> Iterator[Cause]:
    if not sight.workers and sight.silent:
        yield Cause(
            "worker",
            f"{_silence(sight)}; start one with `fanout worker --tier {sight.tier}`",
        )
    if not sight.workers:
        yield Cause(
            "worker",
            f"no worker of tier {sight.tier} has reported: start one with "
            f"`fanout worker --tier {sight.tier}`, or everything with `fanout up`",
        )
    if not any(sight.kind in worker.kinds for worker in sight.workers):
        yield Cause(
            "kind", f"no worker of tier {sight.tier} knows the task kind {sight.kind!r} any more"
        )


def _of_endpoints(sight: Sight) -> Iterator[Cause]:
    used = {name for worker in sight.workers for name in worker.capacity}
    problems = {k: v for worker in sight.workers for k, v in worker.problems.items()}
    # What one worker cannot reach, another one may.
    well = {
        name for worker in sight.workers for name in worker.capacity if name not in worker.problems
    }
    if used and not well:
        name, problem = next(iter(problems.items()))
        rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        yield Cause("endpoint", f"endpoint {name}: {problem}{rest}")
    if sight.endpoints and not any(endpoint.n for endpoint in sight.endpoints):
        name = sight.endpoints[0].name
        yield Cause(
            "quota",
            f"N of endpoint {name} is 0, so that no request is let through: "
            f"`fanout endpoint set {name} -j …`",
        )


def _of_permits(sight: Sight) -> Iterator[Cause]:
    """Nothing is in flight, although workers and endpoints are well."""
    mine = {worker.name for worker in sight.workers}
    parts: Counter[str] = Counter()
    ghosts: Counter[str] = Counter()
    for endpoint in sight.endpoints:
        parts.update(endpoint.parts)
        ghosts.update(endpoint.ghosts)
    own = sum(part for holder, part in parts.items() if holder.rpartition("/")[0] in mine)
    if sight.endpoints and not own and any(ghosts.values()):
        yield Cause(
            "held",
            "N is held back for requests that a worker which has gone may have left at the "
            f"server: {_named(ghosts)}",
        )
    if sight.endpoints and not own and any(parts.values()):
        yield Cause("held", f"N is held by others: {_named(parts)}")
    if sight.queued and not sight.moved:
        names = ", ".join(sorted(mine)[:_NAMED])
        yield Cause(
            "queue",
            f"{names} says it is well but takes nothing from the queue, where {sight.queued:,} "
            "messages wait: restart it",
        )
    if sight.queued:
        yield Cause("queue", f"{sight.queued:,} messages wait in the queue", certain=False)
    if sight.silent:
        yield Cause("worker", f"{_silence(sight)}; what it has goes to the others after a while")
    yield Cause(
        "lost",
        "the open items are neither in the queue nor in flight; those that are lost are submitted "
        "again when they have been looked for",
        certain=False,
    )


def _of_servers(sight: Sight) -> Iterator[Cause]:
    """Requests are in flight, and none of this job's ends."""
    if sight.others:
        yield Cause(
            "others",
            f"other jobs of tier {sight.tier} get on meanwhile, with items open: "
            f"{_named(sight.others)}",
            certain=False,
        )
    for endpoint in sight.endpoints:
        load = endpoint.load
        if load is None or not load.running:
            continue
        running = f"endpoint {endpoint.name} runs {load.running:.0f} requests"
        if endpoint.tokenless_s > 0:
            yield Cause(
                "server",
                f"{running} and has made no token for {duration(endpoint.tokenless_s)}: "
                "its engine hangs, or reads long prompts",
                certain=endpoint.tokenless_s >= _TOKENLESS * sight.least_s,
            )
        if endpoint.tokens_per_s is not None:
            yield Cause(
                "server",
                f"{running} and makes {endpoint.tokens_per_s:.1f} tokens/s for all of them "
                "together: it is slow, or the replies are long",
                certain=False,
            )
    names = ", ".join(sorted({n for w in sight.workers for n, k in w.in_flight.items() if k}))
    yield Cause(
        "server",
        f"{sight.in_flight} requests are in flight at {names}, and none has ended: the server "
        "hangs, or is slow",
        certain=False,
    )


def _silence(sight: Sight) -> str:
    gone = _named({name: f"for at least {duration(s)}" for name, s in sight.silent.items()})
    return (
        f"nothing has been heard of worker {gone}: it has ended, was stopped or hangs, or its "
        "machine is gone"
    )


def _named(found: Mapping[str, object]) -> str:
    shown = [f"{name} {value}" for name, value in list(found.items())[:_NAMED]]
    rest = len(found) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
