"""What every job store has to do; a subclass gives the `store` fixture."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from fanout.errors import JobError
from fanout.failures import Kind
from fanout.store import (
    Checkpoint,
    Counts,
    Decided,
    EndpointInfo,
    Forgotten,
    Records,
    Store,
    WorkerInfo,
)
from fanout.store.bits import bits_of, ordinals_in
from fanout.wire import STATUSES, ErrorInfo, Item, JobSpec, Record, Status

SPEC = JobSpec(kind="echo", tier="heavy", params={"words": 3, "names": ["a", "é"]}, results=True)
DEADLINE_S = 20.0


def items(job: str, first: int, count: int) -> list[Item]:
    return [
        Item(id=f"doc-{n}", payload={"text": f"text {n}"}, ordinal=n, job=job)
        for n in range(first, first + count)
    ]


def record(ordinal: int, status: Status = "ok") -> Record:
    return Record(id=f"doc-{ordinal}", status=status, data={"n": ordinal})


async def read_ids(store: Store, job: str, after: str = "0-0", limit: int = 100) -> list[str]:
    return [r.id for r in (await store.read(job, after, limit, 0)).records]


class StoreContract:
    """The tests; pytest collects them in the subclasses."""

    pytestmark = pytest.mark.anyio

    async def test_an_endpoint_s_concurrency(self, store: Store) -> None:
        assert await store.endpoint("spark") == EndpointInfo()
        await store.set_concurrency("spark", 192)
        assert (await store.endpoint("spark")).concurrency == 192
        assert (await store.endpoint("other")).concurrency is None
        await store.set_concurrency("spark", None)
        assert (await store.endpoint("spark")).concurrency is None

    async def test_the_decisions_of_a_controller(self, store: Store) -> None:
        assert await store.decisions("spark") == []
        first = Decided(1.5, 20, 16, "ramp", "first step", {"in_flight": 16.0}, "w/1")
        second = Decided(2.5, 25, 20, "ramp", "throughput rises", {}, "w/1")
        await store.steer("spark", first)
        await store.steer("spark", second)
        assert await store.decisions("spark") == [second, first]
        assert await store.decisions("spark", 1) == [second]
        assert await store.decisions("other") == []
        assert (await store.endpoint("spark")).auto == 25
        await store.unsteer("spark")
        assert (await store.endpoint("spark")).auto is None
        assert len(await store.decisions("spark")) == 2

    async def test_only_the_last_decisions_are_kept(self, store: Store) -> None:
        for n in range(505):
            await store.steer("spark", Decided(float(n), n + 1, n, "hold", "holding"))
        kept = await store.decisions("spark", 1000)
        assert len(kept) == 500
        assert (kept[0].at, kept[-1].at) == (504.0, 5.0)

    async def test_answers(self, store: Store) -> None:
        await store.ping()

    async def test_a_new_job_is_open_and_empty(self, store: Store) -> None:
        await store.create("j", SPEC)
        info = await store.get("j")
        assert (info.id, info.spec, info.state) == ("j", SPEC, "open")
        assert info.counts == Counts()
        assert info.created_at > 1e9
        assert not info.done
        assert await store.state("j") == "open"

    async def test_a_job_id_is_taken_once(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 1))
        with pytest.raises(JobError, match="already a job j"):
            await store.create("j", SPEC)
        assert (await store.get("j")).counts.submitted == 1

    async def test_jobs_are_listed_newest_first(self, store: Store) -> None:
        for name in ("a", "b", "c"):
            await store.create(name, SPEC)
        assert list(await store.jobs()) == ["c", "b", "a"]
        assert list(await store.jobs(2)) == ["c", "b"]

    async def test_an_unknown_job_is_an_error_and_leaves_no_trace(self, store: Store) -> None:
        for call in (
            store.get("nope"),
            store.seal("nope"),
            store.cancel("nope"),
            store.submit("nope", SPEC, items("nope", 0, 2)),
        ):
            with pytest.raises(JobError, match="no job nope"):
                await call
        assert await store.settle("nope", 0, record(0)) is False
        assert await store.reject("nope", 1, record(1)) is False
        assert await store.state("nope") is None
        assert await store.unread("nope") == 0
        assert await read_ids(store, "nope") == []
        assert await store.queued("heavy") == 0
        assert list(await store.jobs()) == []
        await store.create("nope", SPEC)
        assert (await store.get("nope")).counts == Counts()

    async def test_submit_counts_and_queues(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 3))
        await store.submit("j", SPEC, items("j", 3, 2))
        assert (await store.get("j")).counts == Counts(submitted=5)
        assert await store.queued("heavy") == 5
        assert await store.queued("light") == 0

    async def test_submitting_nothing_changes_nothing(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, [])
        assert (await store.get("j")).counts == Counts()

    async def test_a_batch_sent_again_is_not_queued_again(self, store: Store) -> None:
        await store.create("j", SPEC)
        batch = items("j", 0, 3)
        await store.submit("j", SPEC, batch)
        await store.submit("j", SPEC, batch)
        await store.submit("j", SPEC, items("j", 3, 1))
        await store.submit("j", SPEC, batch)
        assert (await store.get("j")).counts == Counts(submitted=4)
        assert await store.queued("heavy") == 4

    async def test_the_first_settle_wins(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 2))
        assert not await store.has_ended("j", 1)
        assert await store.settle("j", 1, record(1, "invalid")) is True
        assert await store.settle("j", 1, record(1, "ok")) is False
        assert [await store.has_ended(*item) for item in (("j", 1), ("j", 0), ("k", 1))] == [
            *(True, False, False)
        ]
        assert (await store.get("j")).counts == Counts(submitted=2, invalid=1)
        batch = await store.read("j", "0-0", 10, 0)
        assert [(r.id, r.status) for r in batch.records] == [("doc-1", "invalid")]

    async def test_of_many_settles_at_once_one_wins(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 1))
        won = await asyncio.gather(*(store.settle("j", 0, record(0)) for _ in range(20)))
        assert sorted(won) == [False] * 19 + [True]
        assert (await store.get("j")).counts == Counts(submitted=1, ok=1)
        assert await store.unread("j") == 1

    async def test_settles_at_the_same_time_have_an_outcome_each(self, store: Store) -> None:
        for job in ("j", "k"):
            await store.create(job, SPEC)
            await store.submit(job, SPEC, items(job, 0, 4))
        await store.settle("j", 2, record(2))
        won = await asyncio.gather(
            store.settle("j", 0, record(0)),
            store.settle("j", 2, record(2, "failed")),  # it had ended before
            store.settle("nope", 1, record(1)),  # nobody knows its job
            store.settle("j", 1, record(1, "invalid")),
            store.settle("j", 0, record(0, "failed")),  # it ends in the same moment
            store.settle("k", 3, record(3, "failed")),
            store.reject("j", 4, record(4, "skipped")),
        )
        assert won == [True, False, False, True, False, True, True]
        counts = (await store.get("j")).counts
        assert counts == Counts(submitted=5, ok=2, invalid=1, skipped=1)
        assert (await store.get("k")).counts == Counts(submitted=4, failed=1)
        assert await read_ids(store, "j") == ["doc-2", "doc-0", "doc-1", "doc-4"]
        assert await read_ids(store, "k") == ["doc-3"]
        assert await read_ids(store, "nope") == []

    async def test_more_settles_at_once_than_one_call_carries(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 700))
        won = await asyncio.gather(*(store.settle("j", n, record(n)) for n in range(700)))
        assert won == [True] * 700
        assert (await store.get("j")).counts == Counts(submitted=700, ok=700)
        assert await read_ids(store, "j", limit=1000) == [f"doc-{n}" for n in range(700)]

    async def test_who_gives_up_a_settle_takes_no_other_with_it(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 3))
        settling = [asyncio.create_task(store.settle("j", n, record(n))) for n in range(3)]
        await asyncio.sleep(0)
        settling[0].cancel()
        assert await asyncio.gather(*settling[1:]) == [True, True]
        assert {"doc-1", "doc-2"} <= set(await read_ids(store, "j"))

    async def test_every_status_has_its_count(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, len(STATUSES)))
        for ordinal, status in enumerate(STATUSES):
            assert await store.settle("j", ordinal, record(ordinal, status))
        counts = (await store.get("j")).counts
        assert counts == Counts(submitted=5, ok=1, invalid=1, failed=1, skipped=1, cancelled=1)
        assert (counts.settled, counts.open) == (5, 0)

    async def test_reject_submits_and_settles_at_once(self, store: Store) -> None:
        await store.create("j", SPEC)
        assert await store.reject("j", 0, record(0, "skipped")) is True
        assert await store.reject("j", 0, record(0, "skipped")) is False
        await store.submit("j", SPEC, items("j", 1, 1))
        assert (await store.get("j")).counts == Counts(submitted=2, skipped=1)
        assert await store.queued("heavy") == 1
        assert await read_ids(store, "j") == ["doc-0"]

    async def test_a_rejected_row_among_submitted_ones(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.reject("j", 1, record(1, "skipped"))
        kept = [item for item in items("j", 0, 3) if item.ordinal != 1]
        await store.submit("j", SPEC, kept)
        await store.submit("j", SPEC, kept)
        assert (await store.get("j")).counts == Counts(submitted=3, skipped=1)

    async def test_counts_add_up_at_every_moment(self, store: Store) -> None:
        rng = random.Random(7)
        await store.create("j", SPEC)
        submitted, ended, next_ordinal = 0, 0, 0
        settled: set[int] = set()
        for _ in range(150):
            step = rng.choice(["submit", "settle", "settle", "again", "reject"])
            if step == "submit":
                count = rng.randint(1, 4)
                await store.submit("j", SPEC, items("j", next_ordinal, count))
                submitted, next_ordinal = submitted + count, next_ordinal + count
            elif step == "reject":
                await store.reject("j", next_ordinal, record(next_ordinal, "skipped"))
                settled.add(next_ordinal)
                submitted, ended, next_ordinal = submitted + 1, ended + 1, next_ordinal + 1
            elif step == "again" and settled:
                assert not await store.settle("j", rng.choice(sorted(settled)), record(0))
            elif left := sorted(set(range(next_ordinal)) - settled):
                ordinal = rng.choice(left)
                assert await store.settle("j", ordinal, record(ordinal, rng.choice(STATUSES)))
                settled.add(ordinal)
                ended += 1
            counts = (await store.get("j")).counts
            assert (counts.submitted, counts.settled) == (submitted, ended)
            assert counts.open == submitted - ended >= 0
            assert await store.unread("j") == ended
        assert submitted > 50
        assert ended > 50

    async def test_a_part_of_the_input_is_submitted_in_one_step(self, store: Store) -> None:
        await store.create("j", SPEC)
        kept = [item for item in items("j", 0, 4) if item.ordinal != 1]
        bad = record(1, "skipped").model_copy(update={"ordinal": 1})
        upto = Checkpoint(4, "feed")
        for _ in range(2):  # the second is a client that lost the reply
            await store.submit("j", SPEC, kept, rejected=[bad], upto=upto)
            info = await store.get("j")
            assert (info.counts, info.input) == (Counts(submitted=4, skipped=1), upto)
        assert await store.queued("heavy") == 3
        assert [r.ordinal for r in (await store.read("j", "0-0", 9, 0)).records] == [1]
        last = record(4, "skipped").model_copy(update={"ordinal": 4})
        await store.submit("j", SPEC, [], rejected=[last], upto=Checkpoint(5, "f00d"))
        assert (await store.get("j")).input == Checkpoint(5, "f00d")

    async def test_a_store_that_has_lost_a_part_says_so(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 2), upto=Checkpoint(2, "a"))
        with pytest.raises(Forgotten):
            await store.submit("j", SPEC, items("j", 3, 2), upto=Checkpoint(5, "b"))
        with pytest.raises(Forgotten):
            await store.submit("k", SPEC, items("k", 0, 2), upto=Checkpoint(2, "a"))
        assert (await store.get("j")).counts == Counts(submitted=2)
        assert await store.queued("heavy") == 2

    async def test_a_paused_job_takes_its_items_back(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 4))
        assert not await store.release("j", 0)
        await store.pause("j")
        await store.seal("j")
        assert await store.state("j") == "paused"
        await store.settle("j", 0, record(0))
        for _ in range(2):
            assert await store.release("j", 1)
        assert await store.release("j", 0)  # it has ended: there is nothing to run
        info = await store.get("j")
        assert (info.counts, info.done) == (Counts(submitted=3, ok=1), False)
        restored = await store.restore("j", SPEC, Checkpoint(4))
        assert await store.state("j") == "open"
        assert (ordinals_in(restored.settled), restored.dropped) == ({0}, {1})
        assert (await store.get("j")).counts == Counts(submitted=4, ok=1)
        assert await store.withdraw("j", {0, 1}) == {1}
        assert (await store.get("j")).counts == Counts(submitted=3, ok=1)
        await store.resubmit("j", SPEC, items("j", 1, 1))
        assert (await store.get("j")).counts == Counts(submitted=4, ok=1)
        assert await store.queued("heavy") == 5
        assert not (await store.restore("j", SPEC, Checkpoint(4))).dropped
        assert not await store.release("j", 2)

    async def test_what_is_done_or_cancelled_is_not_paused(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 1))
        await store.seal("j")
        await store.settle("j", 0, record(0))
        await store.pause("j")
        assert (await store.get("j")).done
        await store.create("k", SPEC)
        await store.cancel("k")
        await store.pause("k")
        assert await store.state("k") == "cancelled"
        with pytest.raises(JobError, match="k is cancelled"):
            await store.restore("k", SPEC, Checkpoint(0))

    async def test_a_ledger_is_restored_from_the_written_records(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 6), upto=Checkpoint(6, "old"))
        for ordinal in (0, 1, 2, 3):
            await store.settle("j", ordinal, record(ordinal, "invalid"))
        await store.trim("j", (await store.read("j", "0-0", 1, 0)).last)
        # 1 is written and was not trimmed, 9 is written and unknown here; 0 was trimmed and is
        # lost; 2 and 3 are to be read.
        restored = await store.restore(
            "j", SPEC, Checkpoint(10, "new"), bits_of([1, 9]), {"ok": 1, "invalid": 1}
        )
        assert (
            ordinals_in(restored.settled) == {1, 2, 3, 9} == ordinals_in(await store.settled("j"))
        )
        info = await store.get("j")
        assert info.counts == Counts(submitted=10, ok=1, invalid=3)
        assert info.input == Checkpoint(10, "new")
        assert await read_ids(store, "j") == ["doc-2", "doc-3"]
        assert not await store.settle("j", 9, record(9))
        assert await store.settle("j", 0, record(0))
        with pytest.raises(JobError, match="somebody else"):
            await store.restore("j", SPEC, Checkpoint(9), b"", {})

    async def test_an_unknown_job_is_restored_under_its_id(self, store: Store) -> None:
        upto = Checkpoint(1000, "d")
        await store.restore("j", SPEC, upto, bits_of(range(0, 1000, 2)), {"ok": 500})
        info = await store.get("j")
        assert (info.state, info.spec, info.input) == ("open", SPEC, upto)
        assert info.counts == Counts(submitted=1000, ok=500)
        assert list(await store.jobs()) == ["j"]
        odd = set(range(1, 1000, 2))
        assert await store.missing("j", "heavy", odd) == odd
        assert await store.withdraw("j", odd) == odd
        assert (await store.get("j")).counts == Counts(submitted=500, ok=500)

    async def test_an_item_that_ends_before_it_is_submitted_again(self, store: Store) -> None:
        await store.restore("j", SPEC, Checkpoint(2), b"", {})
        assert await store.withdraw("j", [0, 1]) == {0, 1}
        await store.settle("j", 0, record(0))  # a worker had it when the store lost its data
        await store.resubmit("j", SPEC, items("j", 0, 2))
        assert (await store.get("j")).counts == Counts(submitted=2, ok=1)
        assert await store.queued("heavy") == 1
        with pytest.raises(JobError, match="no job k"):
            await store.resubmit("k", SPEC, items("k", 0, 1))

    async def test_many_items_in_the_queue_are_not_missing(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.create("k", SPEC)
        await store.submit("k", SPEC, items("k", 0, 1200))
        await store.submit("j", SPEC, items("j", 0, 1200))
        assert await store.missing("j", "heavy", range(1195, 1210)) == set(range(1200, 1210))
        assert await store.missing("j", "light", [3]) == {3}
        assert await store.missing("j", "heavy", []) == set()

    async def test_a_job_is_forgotten_in_time_unless_it_goes_on(self, store: Store) -> None:
        for job in ("j", "k"):
            await store.create(job, SPEC)
            await store.submit(job, SPEC, items(job, 0, 1))
            await store.keep(job, 1.0)
        await store.settle("j", 0, record(0))
        await store.restore("k", SPEC, Checkpoint(1))
        async with asyncio.timeout(DEADLINE_S):
            while "j" in await store.jobs() or await store.unread("j"):
                await asyncio.sleep(0.05)
        assert await store.state("k") == "open"
        assert await store.unread("j") == 0
        assert await store.settled("j") == b""
        with pytest.raises(JobError, match="no job j"):
            await store.get("j")

    async def test_the_output_is_remembered(self, store: Store) -> None:
        await store.create("j", SPEC)
        assert (await store.get("j")).output is None
        await store.note_output("j", "/somewhere/out.jsonl")
        assert (await store.get("j")).output == "/somewhere/out.jsonl"

    async def test_a_job_is_done_when_sealed_and_nothing_is_open(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 1))
        await store.seal("j")
        info = await store.get("j")
        assert (info.state, info.done) == ("sealed", False)
        await store.settle("j", 0, record(0))
        assert (await store.get("j")).done

    async def test_an_empty_job_is_done_when_sealed(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.seal("j")
        assert (await store.get("j")).done

    async def test_cancelled_is_final(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 1))
        await store.cancel("j")
        await store.seal("j")
        assert await store.state("j") == "cancelled"
        assert not (await store.get("j")).done
        await store.settle("j", 0, record(0, "cancelled"))
        assert (await store.get("j")).done

    async def test_queued_items_end_together_and_their_messages_go(self, store: Store) -> None:
        for job in ("j", "k"):
            await store.create(job, SPEC)
        for first in range(0, 1200, 300):  # more than a page, and two jobs in one queue
            await store.submit("j", SPEC, items("j", first, 300))
            await store.submit("k", SPEC, items("k", first, 300))
        await store.settle("j", 5, record(5))
        await store.cancel("j")

        def cancelled(item: Item) -> Record:
            return Record(id=item.id, ordinal=item.ordinal, status="cancelled")

        assert await store.end_queued("j", cancelled) == 1200
        counts = (await store.get("j")).counts
        assert (counts.ok, counts.cancelled, counts.open) == (1, 1199, 0)
        assert await store.queued("heavy") == 1200
        assert (await store.get("k")).counts.open == 1200
        assert await store.end_queued("j", cancelled) == 0
        assert len(await read_ids(store, "j", limit=2000)) == 1200
        with pytest.raises(JobError):
            await store.end_queued("nope", cancelled)

    async def test_a_sealed_job_can_be_cancelled(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.seal("j")
        await store.cancel("j")
        assert await store.state("j") == "cancelled"

    async def test_records_come_in_the_order_of_settling(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 4))
        for ordinal in (2, 0, 3, 1):
            await store.settle("j", ordinal, record(ordinal))
        first = await store.read("j", "0-0", 3, 0)
        assert [r.id for r in first.records] == ["doc-2", "doc-0", "doc-3"]
        assert isinstance(first.records, Records)
        assert [Record.model_validate_json(line) for line in first.records.lines] == [
            *first.records
        ]
        second = await store.read("j", first.last, 3, 0)
        assert [r.id for r in second.records] == ["doc-1"]
        third = await store.read("j", second.last, 3, 0)
        assert (list(third.records), third.last) == ([], second.last)

    async def test_a_record_comes_back_as_it_was(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 1))
        sent = Record(
            id="doc-0",
            ordinal=0,
            status="invalid",
            data={"é": ["\u2028", None, 10**30]},
            error=ErrorInfo(kind=Kind.SCHEMA, message="no", raw="raw \x00 \U0001f600"),
            attempts=3,
            retried={"schema": 3},
        )
        await store.settle("j", 0, sent)
        assert list((await store.read("j", "0-0", 1, 0)).records) == [sent]

    async def test_trim_forgets_up_to_the_cursor_and_no_more(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 5))
        for ordinal in range(5):
            await store.settle("j", ordinal, record(ordinal))
        batch = await store.read("j", "0-0", 2, 0)
        assert await store.unread("j") == 5
        await store.trim("j", batch.last)
        await store.trim("j", batch.last)
        assert await store.unread("j") == 3
        assert await read_ids(store, "j") == ["doc-2", "doc-3", "doc-4"]
        assert (await store.get("j")).counts.ok == 5
        assert not await store.settle("j", 0, record(0))

    async def test_read_waits_for_a_record(self, store: Store) -> None:
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 1))
        reading = asyncio.create_task(store.read("j", "0-0", 10, DEADLINE_S))
        await asyncio.sleep(0)
        await store.settle("j", 0, record(0))
        async with asyncio.timeout(DEADLINE_S / 2):
            assert [r.id for r in (await reading).records] == ["doc-0"]

    async def test_read_gives_up_waiting(self, store: Store) -> None:
        await store.create("j", SPEC)
        batch = await store.read("j", "0-0", 10, 0.01)
        assert (list(batch.records), batch.last) == ([], "0-0")

    async def test_jobs_do_not_mix(self, store: Store) -> None:
        for name in ("a", "b"):
            await store.create(name, SPEC)
            await store.submit(name, SPEC, items(name, 0, 2))
        await store.settle("a", 0, record(0))
        assert (await store.get("b")).counts == Counts(submitted=2)
        assert await read_ids(store, "b") == []

    async def test_workers_are_shown_by_tier(self, store: Store) -> None:
        one = WorkerInfo("one", "heavy", {"spark": 3}, {"spark": 64}, ("extract", "review"))
        two = WorkerInfo("two", "light")
        await store.report_worker(two, 60)
        await store.report_worker(one, 60)
        assert list(await store.workers()) == [one, two]
        assert list(await store.workers("heavy")) == [one]
        await store.report_worker(WorkerInfo("one", "heavy", {"spark": 4}), 60)
        assert [w.in_flight for w in await store.workers("heavy")] == [{"spark": 4}]
        await store.forget_worker(one)
        await store.forget_worker(one)
        assert list(await store.workers()) == [two]

    async def test_a_silent_worker_is_forgotten(self, store: Store) -> None:
        await store.report_worker(WorkerInfo("one", "heavy"), 0.02)
        async with asyncio.timeout(DEADLINE_S):
            while await store.workers():
                await asyncio.sleep(0.01)

    async def test_a_repeated_call_of_a_recovery_is_the_same_call(self, store: Store) -> None:
        await store.restore("j", SPEC, Checkpoint(4), b"", {})
        for _ in range(2):
            assert await store.withdraw("j", [1, 2]) == {1, 2}
        assert (await store.get("j")).counts == Counts(submitted=2)
        for _ in range(2):
            await store.resubmit("j", SPEC, items("j", 1, 2))
        assert (await store.get("j")).counts == Counts(submitted=4)
        await store.restore("j", SPEC, Checkpoint(4), b"", {})
        assert await store.withdraw("j", [1, 2]) == {1, 2}
        assert (await store.get("j")).counts == Counts(submitted=2)

    async def test_the_pulse_of_a_job(self, store: Store) -> None:
        gone = await store.pulse("j")
        assert (gone.state, gone.next, gone.submitted, gone.settled) == (None, 0, 0, 0)
        await store.create("j", SPEC)
        await store.submit("j", SPEC, items("j", 0, 3), upto=Checkpoint(3, "d"))
        await store.settle("j", 0, record(0))
        await store.settle("j", 1, record(1, "failed"))
        await store.seal("j")
        pulse = await store.pulse("j")
        assert (pulse.state, pulse.next, pulse.submitted, pulse.settled) == ("sealed", 3, 3, 2)
        assert pulse.run == gone.run

    async def test_one_holder_collects_a_job(self, store: Store) -> None:
        assert await store.claim("j", "first", 60) == "first"
        assert await store.claim("j", "second", 60) == "first"
        assert await store.claim("other", "second", 60) == "second"
        assert await store.claim("j", "first", 60) == "first"  # renewed
        assert await store.claim("j", "second", 60, "another") == "first"
        assert await store.claim("j", "second", 60, "first") == "second"  # the first is dead
        await store.unclaim("j", "first")
        assert await store.claim("j", "third", 60) == "second"
        await store.unclaim("j", "second")
        assert await store.claim("j", "third", 0.05) == "third"
        deadline = time.monotonic() + 10
        while await store.claim("j", "fourth", 60) != "fourth":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
