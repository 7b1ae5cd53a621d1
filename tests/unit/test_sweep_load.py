"""The load over a fake endpoint: N is held exactly, every request ends as a sample."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from fanout import ChatRequest, Endpoint, Invalid, Kind, Message, Reply, Task, Usage, UsageError
from fanout.inputs import BadRow
from fanout.sweep.point import Point
from fanout.sweep.record import Sweep, Work
from fanout.sweep.search import FixedList
from fanout.sweep.shape import Prompts, Shape
from fanout.testing import Completion, FakeEndpoint, faults
from fanout_workers.model import ModelClient
from fanout_workers.sweep.load import Steady, wave
from fanout_workers.sweep.pages import Pages
from fanout_workers.sweep.runner import Runner
from fanout_workers.sweep.sender import Sender
from fanout_workers.sweep.source import Ask, Documents, MadeUp, Source

pytestmark = pytest.mark.anyio

CUT = Completion("a story", finish_reason="length", usage=Usage(prompt=12, completion=40))


def endpoint(**settings: Any) -> Endpoint:
    return Endpoint(**{"name": "spark", "url": "http://spark:8000", "model": "m", **settings})


def made_up() -> MadeUp:
    return MadeUp(Prompts(Shape(prompt_tokens=12, output_tokens=40), seed=1))


def sender_of(fake: FakeEndpoint, timeout_s: float = 60.0, **settings: Any) -> Sender:
    return Sender(ModelClient(endpoint(**settings), fake), timeout_s)


async def one_wave(
    fake: FakeEndpoint, n: int, rounds: int = 1, source: Source | None = None
) -> Point:
    pages = Pages(endpoint(), fake, "m")
    return await wave(
        n,
        sender_of(fake),
        source or made_up(),
        pages,
        rounds=rounds,
        duration_s=1.0,
        seen=lambda load: None,
    )


async def test_a_wave_is_n_requests_at_once() -> None:
    fake = FakeEndpoint(lambda request: CUT)
    fake.hold()
    running = asyncio.create_task(one_wave(fake, 8))
    await fake.reached(8)
    fake.release()
    point = await running
    assert (point.concurrency, point.requests, point.tokens) == (8, 8, 320)
    assert (len(fake.requests), fake.in_flight_max) == (8, 8)
    assert (point.timeouts, point.errors) == (0, {})  # cut at max_tokens is what was asked for
    assert len({request.body["messages"][0]["content"] for request in fake.requests}) == 8
    assert fake.requests[0].body["ignore_eos"] is True


async def test_several_waves_hold_n_and_never_more() -> None:
    fake = FakeEndpoint(lambda request: CUT)
    fake.hold()
    running = asyncio.create_task(one_wave(fake, 4, rounds=3))
    for _ in range(8):
        await fake.reached(4)
        fake.release(1)
    await fake.reached(4)
    fake.release()
    point = await running
    assert (point.requests, fake.in_flight_max) == (12, 4)


async def test_every_failure_is_counted_once_and_not_tried_again() -> None:
    answers = [CUT, faults.CONNECTION_REFUSED, faults.unavailable(None), faults.BAD_REQUEST]
    fake = FakeEndpoint(answers)
    point = await one_wave(fake, 4)
    assert point.errors == {"connect": 1, "overload": 1, "request": 1}
    assert point.tokens == 40
    assert len(fake.requests) == 4


async def test_a_request_that_takes_too_long_is_aborted_and_counted() -> None:
    fake = FakeEndpoint([faults.HANG])
    sender = sender_of(fake, timeout_s=0.01)
    sample = await sender.send(made_up().ask())
    assert (sample.failure, sample.tokens) == (Kind.TIMEOUT, 0)
    assert (fake.in_flight, sender.in_flight, fake.aborted) == (0, 0, 1)


async def test_the_tokens_of_a_stream_are_seen_while_it_runs() -> None:
    said = Completion("one two three four", finish_reason="length", usage=Usage(completion=8))
    sender = sender_of(FakeEndpoint([said]), stream=True)
    sample = await sender.send(made_up().ask())
    assert sample.tokens == 8
    assert sample.ttft_s is not None
    assert sender.streamed() == 8
    assert sender.silent == 0


async def held_by(steady: Steady, fake: FakeEndpoint, n: int) -> Point:
    """The point of `n`, every request answered as soon as `n` are in flight."""
    measuring = asyncio.create_task(steady.measure(n, thorough=True))
    while not measuring.done():
        if fake.in_flight < n:
            reached = asyncio.create_task(fake.reached(n))
            await asyncio.wait([measuring, reached], return_when=asyncio.FIRST_COMPLETED)
            reached.cancel()
        fake.release(1)
        await asyncio.sleep(0)
    await fake.reached(n)
    return await measuring


async def test_steady_state_holds_n_and_changes_it_without_a_restart() -> None:
    fake = FakeEndpoint(lambda request: CUT)
    fake.hold()
    sender = sender_of(fake)
    steady = Steady(
        sender,
        made_up(),
        Pages(endpoint(), fake, "m"),
        duration_s=0.01,
        seen=lambda load: None,
    )
    async with steady:
        point = await held_by(steady, fake, 3)
        assert fake.in_flight_max == 3
        assert (point.concurrency, point.how, point.counted_by) == (3, "steady", "little")
        assert point.in_flight is not None
        assert 0 < point.in_flight <= 3.000001
        assert point.latency is not None
        await held_by(steady, fake, 6)
        assert fake.in_flight_max == 6
        aborted = fake.aborted
        await held_by(steady, fake, 2)
        assert fake.aborted == aborted  # it is lowered as requests end
    assert fake.in_flight == 0
    assert sender.in_flight == 0


async def test_what_a_source_raises_ends_the_measurement() -> None:
    class Broken(MadeUp):
        def first_ask(self) -> Ask:
            raise UsageError("no document")

    fake = FakeEndpoint(lambda request: CUT)
    steady = Steady(
        sender_of(fake),
        Broken(made_up().prompts),
        Pages(endpoint(), fake, "m"),
        duration_s=0.01,
        seen=lambda load: None,
    )
    with pytest.raises(UsageError, match="no document"):
        async with steady:
            await steady.measure(2, thorough=False)


class Shout(Task):
    """Two requests a document: it and its opposite; a reply is upper case."""

    name = "shout"

    class Payload(BaseModel):
        text: str

    def requests(self, payload: Any) -> Sequence[ChatRequest]:
        return [
            ChatRequest(messages=(Message(role="user", content=text),), max_tokens=10)
            for text in (payload.text, f"not {payload.text}")
        ]

    def validate(self, reply: Reply, payload: Any) -> str:
        if not reply.content.isupper():
            raise Invalid("write in capitals")
        return reply.content


def shouted(request: dict[str, Any]) -> Completion:
    text = request["messages"][0]["content"]
    return Completion(text if "bad" in text else text.upper(), usage=Usage(completion=5))


async def test_goodput_is_whole_documents_that_are_valid() -> None:
    documents = Documents(Shout(None), ["one", "bad", "three"])
    point = await one_wave(FakeEndpoint(shouted), 6, source=documents)
    assert (point.requests, point.tokens, point.valid) == (6, 30, 2)
    assert point.unusable == {"schema": 2}
    assert point.messages == {"schema": "write in capitals"}
    assert not documents.repeated


async def test_documents_begin_again_after_the_last() -> None:
    documents = Documents(Shout(None), ["one", BadRow("x", "x", 1, "no text", ""), "two"])
    asked = [documents.ask().request.messages[0]["content"] for _ in range(6)]
    assert asked == ["one", "not one", "two", "not two", "one", "not one"]
    assert (documents.repeated, documents.skipped) == (True, 1)
    with pytest.raises(UsageError, match="no document"):
        Documents(Shout(None), []).ask()


class Quiet:
    """Observes nothing, but keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def began(self, runner: Runner, n: int, why: str) -> None:
        pass

    def measured(self, runner: Runner, point: Point) -> None:
        self.told.append(point.concurrency)


def runner_of(ns: Sequence[int], **work: Any) -> Runner:
    shape = Shape(prompt_tokens=60, output_tokens=40)
    return Runner(
        sweep=Sweep(
            endpoint="spark", url="http://spark:8000/v1", model="m", work=Work(shape=shape, **work)
        ),
        plan=FixedList(ns),
        endpoint=endpoint(),
        source=MadeUp(Prompts(shape, seed=1)),
        max_tokens=40,
        observer=Quiet(),
    )


async def test_a_runner_calibrates_and_measures_what_is_missing() -> None:
    def counted(request: dict[str, Any]) -> Completion:
        words = len(request["messages"][0]["content"].split())
        return Completion(
            "x", "", "length", Usage(prompt=words + 3, completion=request["max_tokens"])
        )

    fake = FakeEndpoint(counted)
    runner = runner_of([1, 2, 4])
    runner.sweep.points.append(Point(concurrency=2, requests=2, tokens_per_s=1.0))
    await runner.run(fake)
    assert [point.concurrency for point in runner.sweep.points] == [2, 1, 4]
    assert {point.prompt_tokens for point in runner.sweep.points[1:]} == {60.0}
    assert runner.sweep.complete
    assert runner.sweep.notes == []


async def test_a_server_that_refuses_ignore_eos_is_asked_without() -> None:
    def strict(request: dict[str, Any]) -> Any:
        if "ignore_eos" in request:
            return faults.BAD_REQUEST
        return Completion("short", usage=Usage(prompt=12, completion=7))

    fake = FakeEndpoint(strict)
    runner = runner_of([1])
    await runner.run(fake)
    assert runner.sweep.points[0].tokens == 7
    assert any("refuses ignore_eos" in note for note in runner.sweep.notes)
    assert any("7 tokens instead of 40" in note for note in runner.sweep.notes)


async def test_a_timeout_is_derived_from_the_work_and_grows_with_what_was_measured() -> None:
    runner = runner_of([1])
    assert runner._derived(1) == 90  # 40 tokens / 2 per second x 1.5 + 60 s
    runner.sweep.points.append(Point(concurrency=8, requests=8, tokens_per_s=10.0))
    assert runner._derived(100) == 660  # 100 x 40 tokens / 10 per second x 1.5 + 60 s
