"""One item from its message to its record, over fakes."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from fanout import (
    ChatRequest,
    ConfigError,
    Endpoint,
    Invalid,
    Item,
    JobSpec,
    Message,
    Record,
    Reply,
    Result,
    Task,
    Unavailable,
)
from fanout.store import Checkpoint
from fanout.testing import Answer, Completion, FakeEndpoint, MemoryStore, faults
from fanout.wire import Usage, sha256_of
from fanout_workers import item as item_module
from fanout_workers.attempts import Asker, Stopping
from fanout_workers.item import ItemRunner, Released
from fanout_workers.jobs import Jobs
from fanout_workers.model import ModelClient
from fanout_workers.permits import Permits

pytestmark = pytest.mark.anyio


class Upper(Task):
    """Asks once for each word; `do` in the parameters makes it misbehave."""

    name = "upper"

    class Params(BaseModel):
        do: str = ""

    class Payload(BaseModel):
        text: str

    @property
    def schema_sha256(self) -> str | None:
        return "feed"

    def requests(self, payload: Any) -> Sequence[ChatRequest]:
        return [
            ChatRequest(messages=(Message(role="user", content=word),), max_tokens=10)
            for word in payload.text.split()
        ]

    def validate(self, reply: Reply, payload: Any) -> Any:
        match self.params.do:
            case "break":
                raise ZeroDivisionError("a bug")
            case "refuse":
                raise Invalid("not upper")
            case "configure":
                raise ConfigError("cannot be used")
            case "validate":
                Upper.Payload.model_validate({})
        return reply.content

    def reduce(self, parts: Sequence[Any], payload: Any) -> Result:
        return Result(" ".join(parts))


class Quick(Asker):
    """Makes no pauses; after each of them the endpoint seems well, whatever has happened."""

    async def pause(self, seconds: float) -> None:
        for load in self._permits.loads():
            load.circuit.looked_at(None)
            if load.circuit.wants_canary:
                load.circuit.answered(load.circuit.begin())
        await super().pause(0)


class Bench:
    """A worker's inside around a fake endpoint and a store in memory."""

    def __init__(self, reply: Any = None, concurrency: int = 4) -> None:
        self.store = MemoryStore()
        self.fake = FakeEndpoint(
            reply or (lambda request: request["messages"][0]["content"].upper())
        )
        endpoint = Endpoint(name="spark", url="http://spark", model="m", concurrency=concurrency)
        self.stopping = asyncio.Event()
        hours = itertools.count(step=3600.0)
        self.permits = Permits([endpoint], lambda: next(hours))
        clients = {"spark": ModelClient(endpoint, self.fake)}
        self.jobs = Jobs(self.store, {"upper": Upper})
        self.runner = ItemRunner(
            "heavy", self.store, self.jobs, Quick(self.permits, clients, self.stopping)
        )

    async def submit(self, text: Any, **params: Any) -> Item:
        spec = JobSpec(kind="upper", tier="heavy", params=params)
        await self.store.create("j", spec)
        made = Item(
            id="a", payload={"text": text}, ordinal=0, job="j", submitted_at=time.time() - 5
        )
        await self.store.submit("j", spec, [made])
        return made

    async def run(self, item: Item, **params: Any) -> Record:
        return await self.runner.run("upper", item, params, "req")

    async def run_one(self, text: Any = "one", **params: Any) -> Record:
        record = await self.run(await self.submit(text, **params))
        assert list((await self.store.read("j", "0-0", 10, 0)).records) == [record]
        assert (await self.store.get("j")).counts.settled == 1
        assert self.permits.in_flight() == {"spark": 0}
        return record


async def test_a_good_item() -> None:
    said = Completion("ONE", usage=Usage(prompt=7, completion=3))
    record = await Bench([said]).run_one()
    assert (record.id, record.status, record.data, record.error) == ("a", "ok", "ONE", None)
    assert record.ordinal == 0
    assert (record.attempts, record.retried, record.usage) == (1, {}, said.usage)
    assert (record.tier, record.endpoint, record.model) == ("heavy", "spark", "m")
    assert record.finish_reason == "stop"
    assert record.input_sha256 == sha256_of({"text": "one"})
    assert record.schema_sha256 == "feed"
    timing = record.timing
    assert timing.queued_s is not None
    assert 5 <= timing.queued_s < 60
    assert timing.total_s is not None
    assert timing.permit_s is not None
    assert timing.finished_at == pytest.approx(time.time(), abs=60)


async def test_the_parts_of_an_item_run_at_the_same_time_and_join_in_order() -> None:
    bench = Bench()
    bench.fake.hold()
    running = asyncio.create_task(bench.run_one("one two three"))
    await bench.fake.reached(3)
    bench.fake.release()
    record = await running
    assert (record.data, record.attempts) == ("ONE TWO THREE", 3)
    ids = {request.headers["x-request-id"] for request in bench.fake.requests}
    assert ids == {"req.0-0", "req.1-0", "req.2-0"}


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (faults.BAD_REQUEST, "failed"),
        (faults.SERVER_ERROR, "failed"),
        (faults.TRUNCATED, "invalid"),
        (faults.EMPTY, "invalid"),
    ],
)
@pytest.mark.parametrize("text", ["one", "one two three"])
async def test_a_failure_ends_the_item(fault: faults.Fault, status: str, text: str) -> None:
    def reply(request: dict[str, Any]) -> Answer:
        return fault if request["messages"][0]["content"] in text else "a canary is answered"

    record = await Bench(reply).run_one(text)
    assert record.status == status
    assert record.error is not None
    assert record.error.kind is fault.kind
    assert record.data is None


async def test_one_part_that_cannot_be_had_cancels_the_others() -> None:
    def reply(request: dict[str, Any]) -> Answer:
        return faults.BAD_REQUEST if request["messages"][0]["content"] == "bad" else faults.HANG

    bench = Bench(reply)
    record = await bench.run_one("one bad two")
    assert record.error is not None
    assert record.error.kind == "request"
    assert (bench.fake.aborted, bench.fake.in_flight) == (2, 0)


async def test_a_refused_reply_is_kept_up_to_a_limit() -> None:
    record = await Bench(lambda request: "x" * 20_000).run_one(do="refuse")
    assert record.error is not None
    assert (record.status, record.error.kind, record.error.message) == (
        "invalid",
        "schema",
        "not upper",
    )
    assert record.error.raw == "x" * 16_000


@pytest.mark.parametrize("text", ["one", "one two"])
@pytest.mark.parametrize(
    ("do", "kind", "words"),
    [
        ("break", "task", "task kind upper: ZeroDivisionError('a bug')"),
        ("validate", "task", "task kind upper: "),
        ("configure", "input", "cannot be used"),
    ],
)
async def test_a_bug_in_a_task_kind_ends_the_item(
    text: str, do: str, kind: str, words: str
) -> None:
    record = await Bench().run_one(text, do=do)
    assert record.error is not None
    assert (record.status, record.error.kind) == ("failed", kind)
    assert record.error.message.startswith(words)


async def test_a_payload_that_is_not_the_kind_s() -> None:
    record = await Bench().run_one(text=None)
    assert record.error is not None
    assert (record.status, record.error.kind) == ("failed", "input")
    assert "text" in record.error.message


@pytest.mark.parametrize("payload", [10**30, [float("inf")], "\ud800"])
async def test_an_odd_payload_of_a_plain_celery_client_ends_too(payload: Any) -> None:
    record = await Bench().run(Item(id="a", payload=payload))
    assert (record.status, record.error and record.error.kind) == ("failed", "input")
    assert record.to_json()


async def test_an_item_without_a_job_brings_its_parameters() -> None:
    bench = Bench()
    record = await bench.run(Item(id="a", payload={"text": "x"}), do="")
    assert (record.status, record.data, record.timing.queued_s) == ("ok", "X", None)
    refused = await bench.run(Item(id="a", payload={"text": "x"}), do=5)
    assert refused.error is not None
    assert (refused.error.kind, refused.status) == ("input", "failed")


async def test_an_unknown_kind() -> None:
    bench = Bench()
    record = await bench.runner.run("nope", Item(id="a", payload={}), {}, "req")
    assert record.error is not None
    assert record.error.message == "this worker has no task kind 'nope'"


async def test_an_item_of_an_unknown_job_does_not_end_as_failed() -> None:
    bench = Bench()
    with pytest.raises(item_module.Released):
        await bench.run(Item(id="a", payload={}, job="gone", ordinal=0))


async def test_an_item_of_a_cancelled_job_is_not_asked() -> None:
    bench = Bench()
    item = await bench.submit("one")
    await bench.store.cancel("j")
    record = await bench.run(item)
    assert (record.status, record.attempts, record.ordinal) == ("cancelled", 0, 0)
    assert bench.fake.requests == []
    assert (await bench.store.get("j")).done


@pytest.mark.parametrize("text", ["one", "one two"])
async def test_an_item_that_waits_for_a_permit_when_its_job_is_cancelled_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("fanout_workers.jobs._FRESH_S", -1.0)
    bench = Bench(concurrency=1)
    item = await bench.submit(text)
    async with bench.permits.acquire():
        running = asyncio.create_task(bench.run(item))
        async with asyncio.timeout(10):
            while not bench.permits.waiting:
                await asyncio.sleep(0)
        await bench.store.cancel("j")
        await bench.jobs.refresh()
    record = await running
    assert (record.status, record.attempts) == ("cancelled", 0)
    assert bench.fake.requests == []
    assert bench.permits.in_flight() == {"spark": 0}


@pytest.mark.parametrize("text", ["one", "one two"])
async def test_an_item_that_waits_for_a_permit_when_its_job_is_paused_is_given_back(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("fanout_workers.jobs._FRESH_S", -1.0)
    bench = Bench(concurrency=1)
    item = await bench.submit(text)
    async with bench.permits.acquire():
        running = asyncio.create_task(bench.run(item))
        async with asyncio.timeout(10):
            while not bench.permits.waiting:
                await asyncio.sleep(0)
        await bench.store.pause("j")
        await bench.jobs.refresh()
    with pytest.raises(item_module.Released):
        await running
    assert bench.fake.requests == []
    info = await bench.store.get("j")
    assert (info.state, info.counts.submitted, info.counts.settled) == ("paused", 0, 0)


async def test_what_is_in_flight_when_its_job_is_paused_is_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fanout_workers.jobs._FRESH_S", -1.0)
    bench = Bench([faults.BAD_GATEWAY, "ONE"])
    bench.fake.hold()
    running = asyncio.create_task(bench.run_one("one"))
    await bench.fake.reached(1)
    await bench.store.pause("j")
    await bench.jobs.refresh()
    bench.fake.release()
    record = await running
    assert (record.status, record.attempts) == ("ok", 2)


async def test_an_item_of_a_job_that_goes_on_already_is_run_after_all() -> None:
    bench = Bench()
    item = await bench.submit("one")
    await bench.store.pause("j")
    await bench.jobs.task_of("j")
    await bench.store.restore("j", (await bench.store.get("j")).spec, Checkpoint(1))
    with pytest.raises(Stopping):
        await bench.run(item)
    assert (await bench.run(item)).status == "ok"


@pytest.mark.parametrize("text", ["one", "one two"])
async def test_an_item_at_the_server_is_aborted_when_its_job_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("fanout_workers.jobs._FRESH_S", -1.0)
    bench = Bench()
    told: list[dict[str, int]] = []
    bench.jobs.on_cancelled = lambda: told.append(bench.jobs.in_flight())
    bench.fake.hold()
    requests = len(text.split())
    running = asyncio.create_task(bench.run(await bench.submit(text)))
    await bench.fake.reached(requests)
    assert bench.jobs.in_flight() == {"j": requests}
    await bench.store.cancel("j")
    await bench.jobs.refresh()
    await bench.jobs.refresh()  # counts nothing twice
    record = await running
    assert record.status == "cancelled"
    assert record.error is not None
    assert record.error.message == "the job was cancelled while this was at the server"
    assert record.timing.in_flight_s is not None
    assert (bench.fake.aborted, bench.fake.in_flight) == (requests, 0)
    assert bench.jobs.aborted_figures() == {"j": [requests, 1]}
    assert told == [{}]
    assert (await bench.store.get("j")).done


async def test_the_tokens_of_earlier_tries_stay_in_a_cancelled_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fanout_workers.jobs._FRESH_S", -1.0)
    cut = Completion("{", finish_reason="length", usage=Usage(prompt=7, completion=10))
    bench = Bench([cut, faults.HANG])
    running = asyncio.create_task(bench.run(await bench.submit("one")))
    async with asyncio.timeout(10):
        while len(bench.fake.requests) < 2:
            await asyncio.sleep(0)
    await bench.store.cancel("j")
    await bench.jobs.refresh()
    record = await running
    assert (record.status, record.attempts, record.usage) == ("cancelled", 1, cut.usage)


async def test_an_item_that_backs_off_ends_when_its_job_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fanout_workers.jobs._FRESH_S", -1.0)
    monkeypatch.setattr(Quick, "pause", Asker.pause)
    bench = Bench([faults.rate_limited(retry_after=500)])
    running = asyncio.create_task(bench.run(await bench.submit("one")))
    await bench.fake.reached(1)
    await bench.fake.reached(0)
    await bench.store.cancel("j")
    await bench.jobs.refresh()
    async with asyncio.timeout(10):
        assert (await running).status == "cancelled"


async def test_a_cancelled_job_leaves_the_items_of_another_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fanout_workers.jobs._FRESH_S", -1.0)
    bench = Bench()
    bench.fake.hold()
    running = asyncio.create_task(bench.run(await bench.submit("one")))
    other = asyncio.create_task(bench.run(Item(id="b", payload={"text": "two"})))
    await bench.fake.reached(2)
    await bench.store.cancel("j")
    await bench.jobs.refresh()
    assert (await running).status == "cancelled"
    bench.fake.release()
    assert (await other).data == "TWO"


async def test_a_paused_job_s_items_are_dropped_before_they_start_and_finish_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fanout_workers.jobs._FRESH_S", -1.0)
    bench = Bench()
    bench.fake.hold()
    item = await bench.submit("one")
    running = asyncio.create_task(bench.run(item))
    await bench.fake.reached(1)
    await bench.store.pause("j")
    await bench.jobs.refresh()
    with pytest.raises(Released):
        await bench.run(item.model_copy(update={"id": "b", "ordinal": 1}))
    bench.fake.release()
    assert (await running).status == "ok"
    assert await bench.store.unread("j") == 1
    assert len(bench.fake.requests) == 1


async def test_what_waits_for_a_permit_when_the_worker_stops_is_not_sent() -> None:
    bench = Bench(concurrency=1)
    item = await bench.submit("one")
    async with bench.permits.acquire():
        running = asyncio.create_task(bench.run(item))
        async with asyncio.timeout(10):
            while not bench.permits.waiting:
                await asyncio.sleep(0)
        bench.stopping.set()
    with pytest.raises(Stopping):
        await running
    assert bench.fake.requests == []


@pytest.mark.parametrize("text", ["one", "one two three"])
async def test_stopping_leaves_the_item_untouched(text: str) -> None:
    bench = Bench(lambda request: faults.RESET)
    item = await bench.submit(text)
    bench.stopping.set()
    with pytest.raises(Stopping):
        await bench.run(item)
    assert (await bench.store.get("j")).counts.open == 1


@pytest.mark.parametrize("text", ["one", "one two three"])
async def test_a_cancelled_run_leaves_the_item_untouched(text: str) -> None:
    bench = Bench()
    bench.fake.hold()
    running = asyncio.create_task(bench.run(await bench.submit(text)))
    await bench.fake.reached(len(text.split()))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await bench.store.get("j")).counts.open == 1
    assert bench.permits.in_flight() == {"spark": 0}


async def test_a_store_that_is_away_at_the_start_leaves_the_item_untouched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def away(job: str) -> None:
        raise Unavailable("Redis does not answer")

    bench = Bench()
    item = await bench.submit("one")
    monkeypatch.setattr(bench.store, "get", away)
    with pytest.raises(Unavailable):
        await bench.run(item)
    monkeypatch.undo()
    assert (await bench.store.get("j")).counts.open == 1


async def test_a_finished_answer_waits_for_a_store_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    item = await bench.submit("one")
    settle, left = bench.store.settle, [1, 2, 3]

    async def shaky(job: str, ordinal: int, record: Record) -> bool:
        if left:
            left.pop()
            raise Unavailable("Redis does not answer")
        return await settle(job, ordinal, record)

    monkeypatch.setattr(bench.store, "settle", shaky)
    monkeypatch.setattr(item_module, "_SETTLE_PAUSE_S", 0.0)
    assert (await bench.run(item)).status == "ok"
    assert (await bench.store.get("j")).counts.ok == 1
    assert len(bench.fake.requests) == 1


async def test_an_item_delivered_twice_ends_once() -> None:
    bench = Bench()
    item = await bench.submit("one")
    await asyncio.gather(bench.run(item), bench.run(item))
    assert (await bench.store.get("j")).counts.ok == 1
    assert await bench.store.unread("j") == 1


async def test_replies_with_odd_fields_do_not_break_the_record() -> None:
    choice = {"message": {"content": json.dumps("x")}, "finish_reason": ["stop"]}
    record = await Bench(lambda request: {"choices": [choice], "model": 5}).run_one()
    assert (record.status, record.model, record.finish_reason) == ("ok", None, None)


async def test_data_that_cannot_be_written_still_ends_the_item() -> None:
    class Deep(Upper):
        def reduce(self, parts: Sequence[Any], payload: Any) -> Result:
            data: Any = {}
            for _ in range(600):
                data = {"a": data}
            return Result(data)

    bench = Bench()
    bench.jobs._kinds = {"upper": Deep}
    record = await bench.run_one()
    assert (record.status, record.data) == ("failed", None)
    assert record.error is not None
    assert record.error.message.startswith("the data cannot be written")
