"""What a job store has to do, whatever it is made of.

One contract suite (tests/store_contract.py) runs over every implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from fanout.wire import Item, JobSpec, Record

#: `open` takes items, `sealed` has them all, `cancelled` ends the rest unrun.
JobState = Literal["open", "sealed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Counts:
    """How many items of a job there are by status; they add up at every moment."""

    submitted: int = 0
    ok: int = 0
    invalid: int = 0
    failed: int = 0
    skipped: int = 0
    cancelled: int = 0

    @property
    def settled(self) -> int:
        """Items that have ended, however they did."""
        return self.ok + self.invalid + self.failed + self.skipped + self.cancelled

    @property
    def open(self) -> int:
        """Items submitted that have not ended."""
        return self.submitted - self.settled


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as the store knows it; `created_at` is Unix time in seconds."""

    id: str
    spec: JobSpec
    state: JobState
    counts: Counts
    created_at: float

    @property
    def done(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state != "open" and self.counts.open == 0


class Records(tuple[Record, ...]):
    """Records as they were read, together with the JSON they came as.

    Attributes:
        lines: the JSON of each, without a newline: who writes them on need not make it again.
    """

    lines: Sequence[bytes]

    @classmethod
    def of(cls, lines: Iterable[bytes]) -> Self:
        """The records of some lines.

        Raises:
            ValueError: one of them is no record.
        """
        kept = tuple(lines)
        records = cls(map(Record.model_validate_json, kept))
        records.lines = kept
        return records


@dataclass(frozen=True, slots=True)
class Batch:
    """Records in the order of their settling; `last` is the cursor after them."""

    records: Sequence[Record]
    last: str


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker process that has lately shown itself.

    Attributes:
        name: Celery's node name.
        tier: the tier it serves.
        in_flight: requests at the servers by endpoint, at its last report.
        capacity: N by endpoint.
        kinds: names of the task kinds it can run.
        problems: what is wrong with an endpoint, by name; well ones are left out.
        circuits: state of each endpoint's circuit, by name: closed, open or half-open.
    """

    name: str
    tier: str
    in_flight: dict[str, int] = field(default_factory=dict)
    capacity: dict[str, int] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    problems: dict[str, str] = field(default_factory=dict)
    circuits: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """An endpoint's N, as the workers share it.

    Attributes:
        concurrency: N if it was set by hand; None = the controller's or the configuration's.
        parts: how much of N each living worker process holds, by its name.
        auto: N if the controller has set it.
        ghosts: how much of N is held back for requests that a process which has gone silent may
            have left at the server, by its name.
    """

    concurrency: int | None = None
    parts: dict[str, int] = field(default_factory=dict)
    auto: int | None = None
    ghosts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision of the controller that holds an endpoint's N.

    Attributes:
        at: Unix time in seconds.
        n: N from then on.
        before: N until then.
        phase: what the controller was doing: ramp, refine or hold.
        reason: why, in a few words.
        inputs: the figures that it rests on, by name.
        by: the worker process that decided.
    """

    at: float
    n: int
    before: int
    phase: str
    reason: str
    inputs: dict[str, float] = field(default_factory=dict)
    by: str = ""


class Store(Protocol):
    """Jobs, their ledger and their records. Every method raises `Unavailable` if it is away."""

    async def ping(self) -> None:
        """Return when the store answers."""

    async def create(self, job: str, spec: JobSpec) -> None:
        """Make an open job; an existing one of that id is a `JobError`."""

    async def get(self, job: str) -> JobInfo:
        """The job as it stands; an unknown one is a `JobError`."""

    async def jobs(self, limit: int = 20) -> Sequence[str]:
        """Ids of the latest jobs, newest first."""

    async def submit(self, job: str, spec: JobSpec, items: Sequence[Item]) -> None:
        """Count the items and queue them, in one step; an unknown job is a `JobError`.

        Ordinals rise from call to call; a batch that was submitted before is not queued again.
        """

    async def settle(self, job: str, ordinal: int, record: Record) -> bool:
        """End an item: count its status and append its record.

        The only way an item ends. The first call for an ordinal wins and returns True; a later
        one changes nothing and returns False, and so does one for an unknown job.
        """

    async def reject(self, job: str, ordinal: int, record: Record) -> bool:
        """Count an item as submitted and settle it at once, without queueing it."""

    async def seal(self, job: str) -> None:
        """Say that no more items will come; a cancelled job stays cancelled."""

    async def cancel(self, job: str) -> None:
        """Say that items that have not started shall not."""

    async def state(self, job: str) -> JobState | None:
        """The job's state alone; None if it is unknown."""

    async def read(self, job: str, after: str, limit: int, block_s: float) -> Batch:
        """Up to `limit` records after the cursor; none when none came in at most `block_s` s."""

    async def trim(self, job: str, upto: str) -> None:
        """Forget the records up to the cursor: they are safe elsewhere."""

    async def unread(self, job: str) -> int:
        """How many records the store holds for the job."""

    async def report_worker(self, info: WorkerInfo, ttl_s: float) -> None:
        """Show a worker as alive for `ttl_s` seconds."""

    async def forget_worker(self, info: WorkerInfo) -> None:
        """Take back what `report_worker` said."""

    async def workers(self, tier: str | None = None) -> Sequence[WorkerInfo]:
        """The workers alive now, of one tier or of all."""

    async def queued(self, tier: str) -> int:
        """Messages waiting in the tier's queue."""

    async def endpoint(self, name: str) -> EndpointInfo:
        """How the endpoint's N is shared now; nothing is known of one that nobody has used."""

    async def set_concurrency(self, name: str, concurrency: int | None) -> None:
        """Change an endpoint's N while workers run; None goes back to the configuration's."""

    async def steer(self, name: str, decided: Decided) -> None:
        """Set the N that the controller wants, and keep the decision among the last few hundred."""

    async def decisions(self, name: str, limit: int = 20) -> Sequence[Decided]:
        """The last decisions on the endpoint's N, newest first."""

    async def unsteer(self, name: str) -> None:
        """Forget the controller's N: the endpoint has one in its configuration."""

    async def aclose(self) -> None:
        """Let go of connections."""
