"""What a job store has to do, whatever it is made of.

One contract suite (tests/store_contract.py) runs over every implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from fanout.errors import JobError
from fanout.wire import Item, JobSpec, Record

#: `open` takes items, `sealed` has them all, `paused` keeps what has not started for a client that
#: goes on with the job later, `cancelled` ends the rest unrun and is final.
JobState = Literal["open", "sealed", "paused", "cancelled"]


class Forgotten(JobError):
    """The store came back without something that it had been told: its data is older, or gone."""


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
class Checkpoint:
    """How far a job's input has been submitted.

    Attributes:
        count: documents, rows that cannot be read included; the next ordinal.
        digest: hex digest of all of them; empty where nobody computed it.
    """

    count: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as the store knows it.

    Attributes:
        created_at: Unix time in seconds.
        input: how far its input has been submitted.
        output: where its records are written, as its client named it.
    """

    id: str
    spec: JobSpec
    state: JobState
    counts: Counts
    created_at: float
    input: Checkpoint = Checkpoint()
    output: str | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state not in ("open", "paused") and self.counts.open == 0


@dataclass(frozen=True, slots=True)
class Restored:
    """What a store holds of a job that goes on.

    Attributes:
        settled: bitmap of the ordinals that have ended, as Redis keeps bits: the first is the
            highest of the first byte.
        dropped: ordinals that workers gave back while the job was paused.
    """

    settled: bytes
    dropped: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a store knows of a job, in few figures: to see whether it has forgotten some of it.

    Attributes:
        run: changes when the server has started anew; None = it does not say.
        state: None = the job is unknown.
        next: documents of the input submitted.
        submitted: items.
        settled: items that have ended.
    """

    run: str | None
    state: JobState | None
    next: int = 0
    submitted: int = 0
    settled: int = 0


class Records(tuple[Record, ...]):
    """Records as they were read, together with the JSON they came as.

    Attributes:
        lines: the JSON of each, without a newline: who writes them on need not make it again.
    """

    lines: Sequence[bytes]

    @classmethod
    def of(cls, lines: Iterable[bytes], ordinals: Sequence[int | None] = ()) -> Self:
        """The records of some lines.

        Args:
            lines: the JSON of each.
            ordinals: the ordinal of each, for those that do not say it (an older worker's).

        Raises:
            ValueError: one of them is no record.
        """
        kept = list(lines)
        found = [Record.model_validate_json(line) for line in kept]
        for place, ordinal in enumerate(ordinals):
            if found[place].ordinal is None and ordinal is not None:
                found[place] = found[place].model_copy(update={"ordinal": ordinal})
                kept[place] = found[place].to_json()
        records = cls(found)
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
        jobs: requests at the servers by job; a job that is not in work is left out.
        aborted: [requests aborted, items they were of] by cancelled job, of the latest few.
    """

    name: str
    tier: str
    in_flight: dict[str, int] = field(default_factory=dict)
    capacity: dict[str, int] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    problems: dict[str, str] = field(default_factory=dict)
    circuits: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    aborted: dict[str, list[int]] = field(default_factory=dict)


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

    async def eviction(self) -> str:
        """The policy by which the store would delete what is kept in it when it is full.

        Empty when it would not, or does not say.
        """

    async def create(self, job: str, spec: JobSpec) -> None:
        """Make an open job; an existing one of that id is a `JobError`."""

    async def get(self, job: str) -> JobInfo:
        """The job as it stands; an unknown one is a `JobError`."""

    async def jobs(self, limit: int = 20) -> Sequence[str]:
        """Ids of the latest jobs, newest first."""

    async def submit(
        self,
        job: str,
        spec: JobSpec,
        items: Sequence[Item],
        *,
        rejected: Sequence[Record] = (),
        upto: Checkpoint | None = None,
    ) -> None:
        """Count the items and queue them, in one step; an unknown job is a `JobError`.

        Ordinals rise from call to call; a batch that was submitted before is not queued again.

        Args:
            job: its id.
            spec: names the queue and the task.
            items: in the order of their ordinals.
            rejected: records, with ordinals among those of the items, that are settled at once.
            upto: how far the input has been submitted then. With it, ordinals leave no gap from
                call to call; one that does means that the store has lost a call: `Forgotten`.
        """

    async def settle(self, job: str, ordinal: int, record: Record) -> bool:
        """End an item: count its status and append its record.

        The only way an item ends. The first call for an ordinal wins and returns True; a later
        one changes nothing and returns False, and so does one for an unknown job.
        """

    async def has_ended(self, job: str, ordinal: int) -> bool:
        """Whether an item has been settled."""

    async def reject(self, job: str, ordinal: int, record: Record) -> bool:
        """Count an item as submitted and settle it at once, without queueing it."""

    async def seal(self, job: str) -> None:
        """Say that no more items will come; only an open job becomes sealed."""

    async def pause(self, job: str) -> None:
        """Say that items which have not started shall wait for `restore`.

        A job that is done or cancelled stays so.
        """

    async def release(self, job: str, ordinal: int) -> bool:
        """Give back an item of a paused job: it counts as not submitted until `resubmit`.

        False if the job is not paused: the item has to be run.
        """

    async def restore(
        self,
        job: str,
        spec: JobSpec,
        upto: Checkpoint,
        written: bytes | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Restored:
        """Open a job again, with its ledger as the written records and the unread ones say.

        Whatever the store had lost or kept: afterwards the items that have ended are those in
        `written` and those whose records are in the store, each once, and every other ordinal
        below `upto` is open. Records that are in `written` are forgotten.

        Args:
            job: its id; made anew if the store does not know it.
            spec: what its items share.
            upto: how far its input has been submitted.
            written: bitmap of the records that the output holds; None = what the store says of
                what has ended stands.
            counts: the written records by status.

        Raises:
            JobError: the job is cancelled, or more of it has been submitted than `upto`.
        """

    async def withdraw(self, job: str, ordinals: Collection[int]) -> set[int]:
        """Count open items that are nowhere any more as not submitted; those that were open."""

    async def resubmit(self, job: str, spec: JobSpec, items: Sequence[Item]) -> None:
        """Count and queue items that were withdrawn or released; an unknown job is a `JobError`."""

    async def missing(self, job: str, tier: str, ordinals: Collection[int]) -> set[int]:
        """Those of the open items that are neither in the tier's queue nor with a worker."""

    async def pulse(self, job: str) -> Pulse:
        """What the store knows of a job, in one short call."""

    async def settled(self, job: str) -> bytes:
        """Bitmap of the ordinals that have ended, as in `Restored`."""

    async def keep(self, job: str, seconds: float) -> None:
        """Forget the job and its records after so many seconds, unless it is restored."""

    async def note_output(self, job: str, output: str) -> None:
        """Remember where the job's records are written."""

    async def cancel(self, job: str) -> None:
        """Say that items that have not started shall not."""

    async def end_queued(self, job: str, record_of: Callable[[Item], Record]) -> int:
        """Settle the items of the job that no worker has taken, and forget their messages.

        Returns how many there were; an unknown job is a `JobError`.
        """

    async def state(self, job: str) -> JobState | None:
        """The job's state alone; None if it is unknown."""

    async def read(self, job: str, after: str, limit: int, block_s: float) -> Batch:
        """Up to `limit` records after the cursor; none when none came in at most `block_s` s."""

    async def trim(self, job: str, upto: str) -> None:
        """Forget the records up to the cursor: they are safe elsewhere."""

    async def claim(self, job: str, holder: str, ttl_s: float, gone: str = "") -> str:
        """Be the one who collects a job for so many seconds; returns who is.

        Args:
            job: its id; the store need not know it.
            holder: who asks: a name that nobody else has.
            ttl_s: seconds until somebody else may, unless it is claimed again.
            gone: a holder that is known to live no more, and whose claim is void.
        """

    async def unclaim(self, job: str, holder: str) -> None:
        """Let somebody else collect, if it is the holder who does."""

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
