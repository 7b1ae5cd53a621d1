"""What follows from each kind of failure, over a fake endpoint and without a clock."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fanout import ChatRequest, Endpoint, Failure, Invalid, Kind, Message, Reply, Task, Usage
from fanout.failures import POLICIES
from fanout.testing import Answer, Completion, FakeEndpoint, faults
from fanout.testing.endpoint import Sent
from fanout.testing.faults import Fault
from fanout_workers.attempts import HANG_UPS, Asker, Effort, Stopping
from fanout_workers.model import ModelClient
from fanout_workers.permits import Permits

pytestmark = pytest.mark.anyio

CANARY_TOKENS = 16
GOOD = {"title": "yes"}
REQUEST = ChatRequest(
    messages=(Message(role="system", content="Be brief."), Message(role="user", content="Title?")),
    max_tokens=100,
)


class Titles(Task):
    """Wants an object with a title."""

    name = "titles"

    def requests(self, payload: Any) -> Sequence[ChatRequest]:
        return [REQUEST]

    def validate(self, reply: Reply, payload: Any) -> Any:
        try:
            return json.loads(reply.content)["title"]
        except (ValueError, KeyError):
            raise Invalid(f"no title in {reply.content}") from None


class Unhurried(Asker):
    """Notes its pauses instead of making them, and what was in flight meanwhile.

    After each of them the endpoint seems well, whatever has happened.
    """

    def __init__(self, permits: Permits, *rest: Any) -> None:
        super().__init__(permits, *rest)
        self.permits = permits
        self.pauses: list[float] = []
        self.held_in_pauses = 0

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        for load in self.permits.loads():
            load.circuit.looked_at(None)
            if load.circuit.wants_canary:
                load.circuit.answered(load.circuit.begin())
        self.held_in_pauses += sum(self.permits.in_flight().values())


class Bench:
    """An asker in front of a fake endpoint."""

    def __init__(
        self,
        *answers: Answer,
        asker: type[Asker] = Unhurried,
        concurrency: int = 1,
        **settings: Any,
    ) -> None:
        self.answers = deque(answers)
        #: What canaries meet; after the last of them they are answered.
        self.canaries: deque[Answer] = deque()
        self.fake = FakeEndpoint(self.reply)
        endpoint = Endpoint(
            name="spark", url="http://spark", model="m", concurrency=concurrency, **settings
        )
        self.stopping = asyncio.Event()
        hours = itertools.count(step=3600.0)
        self.permits = Permits([endpoint], lambda: next(hours))
        self.client = ModelClient(endpoint, self.fake)
        self.asker: Any = asker(self.permits, {"spark": self.client}, self.stopping)
        self.effort = Effort()

    def reply(self, body: dict[str, Any]) -> Answer:
        if body["max_tokens"] == CANARY_TOKENS:
            return self.canaries.popleft() if self.canaries else "yes"
        assert self.answers, "more is asked than is scripted"
        return self.answers.popleft()

    @property
    def asked(self) -> list[Sent]:
        """The item's requests."""
        return [one for one in self.fake.requests if one.body["max_tokens"] != CANARY_TOKENS]

    async def ask(self, request: ChatRequest = REQUEST) -> Any:
        return await self.asker.ask(Titles(None), request, None, self.effort, "item")

    async def fail(self, request: ChatRequest = REQUEST) -> Failure:
        with pytest.raises(Failure) as caught:
            await self.ask(request)
        return caught.value

    def sent(self, key: str) -> list[Any]:
        return [request.body.get(key) for request in self.asked]


async def test_a_good_reply_at_once() -> None:
    bench = Bench(Completion(json.dumps(GOOD), usage=Usage(prompt=5, completion=2)))
    assert await bench.ask() == "yes"
    effort = bench.effort
    assert (effort.attempts, effort.endpoint, effort.retried) == (1, "spark", {})
    assert effort.usage == Usage(prompt=5, completion=2)
    assert effort.reply is not None
    assert effort.reply.finish_reason == "stop"


@pytest.mark.parametrize(
    "fault",
    [f for f in faults.ALL if POLICIES[f.kind].tries > 1 and f.kind is not Kind.TIMEOUT]
    + [faults.NOT_FOUND],
    ids=lambda fault: fault.name,
)
async def test_what_can_be_mended_is_tried_again(fault: Fault) -> None:
    bench = Bench(fault, GOOD)
    assert await bench.ask() == "yes"
    assert bench.effort.retried == {fault.kind: 1}


@pytest.mark.parametrize(
    "fault",
    [
        f
        for f in faults.ALL
        if POLICIES[f.kind].tries < 10 and f.kind is not Kind.TIMEOUT and f.status != 404
    ],
    ids=lambda fault: fault.name,
)
async def test_tries_are_bounded(fault: Fault) -> None:
    tries = POLICIES[fault.kind].tries
    bench = Bench(*[fault] * tries)
    failure = await bench.fail()
    assert failure.kind is fault.kind
    assert len(bench.asked) == tries
    assert bench.effort.retried == {fault.kind: tries}
    assert bench.effort.attempts == tries


async def test_a_timeout_gets_one_more_try(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(faults.HANG, faults.HANG, timeout_s=1000)
    asking = asyncio.create_task(bench.fail())
    real = asyncio.timeout
    monkeypatch.setattr(asyncio, "timeout", lambda seconds: real(seconds and 0.01))
    failure = await asking
    assert failure.kind is Kind.TIMEOUT
    assert (bench.effort.attempts, bench.fake.aborted) == (2, 2)
    assert len(bench.fake.requests) == 3  # the canary's


@pytest.mark.parametrize(
    "fault",
    [
        faults.RESET,
        faults.UNAVAILABLE,
        faults.RATE_LIMITED,
        *(faults.refused_request(status, "no") for status in (307, 401, 403, 404)),
    ],
    ids=lambda fault: fault.name,
)
async def test_an_absent_full_or_unfit_server_spends_no_attempt(fault: Fault) -> None:
    bench = Bench(*[fault] * 20, GOOD)
    assert await bench.ask() == "yes"
    assert bench.effort.attempts == 1
    assert bench.effort.retried == {fault.kind: 20}


@pytest.mark.parametrize("canary", [faults.SERVER_ERROR, faults.RESET, faults.UNAVAILABLE])
async def test_a_failure_is_the_item_s_only_when_the_server_does_other_work(canary: Fault) -> None:
    bench = Bench(*[faults.SERVER_ERROR] * 8, GOOD)
    bench.canaries = deque([canary] * 5)
    assert await bench.ask() == "yes"
    # The fourth would have been the last: each one from there has its canary, and none counts.
    assert (bench.effort.attempts, bench.effort.excused) == (4, 5)


async def test_a_canary_has_the_item_s_permit() -> None:
    bench = Bench(*[faults.SERVER_ERROR] * 4)
    await bench.fail()
    assert len(bench.fake.requests) == 5
    assert bench.fake.in_flight_max == 1
    assert bench.permits.in_flight() == {"spark": 0}


async def test_what_fails_while_the_circuit_opens_spends_no_attempt() -> None:
    bench = Bench(*[faults.SERVER_ERROR] * 30, *[GOOD] * 30, concurrency=30)
    bench.fake.hold()
    efforts = [Effort() for _ in range(30)]
    asking = [
        asyncio.create_task(bench.asker.ask(Titles(None), REQUEST, None, effort, str(n)))
        for n, effort in enumerate(efforts)
    ]
    await bench.fake.reached(30)
    bench.fake.release()
    bench.fake.hold()  # no retry is answered before all have failed
    async with asyncio.timeout(20):
        while sum(effort.in_flight for effort in efforts) < 30 or len(bench.asked) < 60:
            await asyncio.sleep(0)
    bench.fake.release()
    assert await asyncio.gather(*asking) == ["yes"] * 30
    assert sum(effort.excused for effort in efforts) == 21
    assert max(effort.attempts for effort in efforts) == 2


async def test_an_item_that_no_endpoint_can_take_goes_back_while_nothing_is_lost() -> None:
    bench = Bench("late")
    bench.permits.set_limit("spark", 0)
    asking = asyncio.create_task(bench.ask())
    while not bench.permits.waiting:
        await asyncio.sleep(0)
    bench.effort.attempts = 1
    assert bench.permits.send_back() == 0  # what has been tried is known here only
    bench.effort.attempts = 0
    assert bench.permits.send_back() == 1
    with pytest.raises(Stopping):
        await asking
    assert bench.fake.requests == []


async def test_a_retry_prefers_another_endpoint() -> None:
    bench = Bench(faults.SERVER_ERROR, GOOD)
    avoided: list[str | None] = []
    acquire = bench.permits.acquire

    def noting(**how: Any) -> Any:
        avoided.append(how["avoid"])
        return acquire(**how)

    bench.permits.acquire = noting  # type: ignore[method-assign]
    await bench.ask()
    assert avoided == [None, "spark"]


async def test_an_absent_server_is_given_up_in_the_end() -> None:
    tries = POLICIES[Kind.CONNECT].tries
    bench = Bench(*[faults.CONNECTION_REFUSED] * tries)
    assert (await bench.fail()).kind is Kind.CONNECT
    assert len(bench.fake.requests) == tries


async def test_an_item_on_which_a_server_hangs_up_that_is_well_ends() -> None:
    bench = Bench(*[faults.RESET] * 50)
    failure = await bench.fail()
    assert (failure.kind, failure.excused) == (Kind.CONNECT, False)
    # Of five in a row the last one opens the circuit, and does not count.
    assert len(bench.asked) == HANG_UPS + (HANG_UPS - 1) // 4
    assert bench.effort.hang_ups == HANG_UPS
    assert bench.effort.attempts == 1


async def test_a_server_that_hangs_up_on_everything_is_waited_for() -> None:
    bench = Bench(*[faults.RESET] * 90, GOOD)
    bench.canaries = deque([faults.RESET] * 90)
    assert await bench.ask() == "yes"
    assert bench.effort.attempts == 1


async def test_pauses_grow_and_spread() -> None:
    bench = Bench(*[faults.RESET] * 4, GOOD)
    await bench.ask()
    assert bench.asker.pauses[0] == 0
    for pause, longest in zip(bench.asker.pauses[1:], (0.5, 1.0, 2.0), strict=True):
        assert longest / 2 <= pause <= longest


async def test_nobody_comes_back_before_the_time_that_the_server_asks_for() -> None:
    bench = Bench(*[faults.rate_limited(retry_after=90)] * 20, GOOD)
    await bench.ask()
    assert all(90 <= pause <= 120 for pause in bench.asker.pauses)
    assert len(set(bench.asker.pauses)) > 1


async def test_a_server_that_asks_for_no_wait_is_not_asked_without_end() -> None:
    bench = Bench(faults.rate_limited(retry_after=0), faults.rate_limited(retry_after=0), GOOD)
    await bench.ask()
    assert all(pause >= 1 for pause in bench.asker.pauses)


async def test_no_permit_is_held_in_a_pause() -> None:
    bench = Bench(faults.UNAVAILABLE, faults.SERVER_ERROR, faults.RESET, GOOD)
    await bench.ask()
    assert len(bench.asker.pauses) == 3
    assert bench.asker.held_in_pauses == 0
    assert bench.permits.in_flight() == {"spark": 0}


async def test_no_permit_is_held_in_the_validation() -> None:
    bench = Bench(GOOD)
    held: list[int] = []

    class Looking(Titles):
        def validate(self, reply: Reply, payload: Any) -> Any:
            held.append(bench.permits.in_flight()["spark"])

    await bench.asker.ask(Looking(None), REQUEST, None, bench.effort, "item")
    assert held == [0]


async def test_in_flight_stays_at_n_while_there_is_more() -> None:
    bench = Bench(*[GOOD] * 12, concurrency=3)
    bench.fake.hold()
    asking = [asyncio.create_task(bench.ask()) for _ in range(12)]
    for _ in range(9):
        await bench.fake.reached(3)
        bench.fake.release(1)
        await bench.fake.reached(2)
    bench.fake.release()
    assert await asyncio.gather(*asking) == ["yes"] * 12
    assert bench.fake.in_flight_max == 3


async def test_tokens_of_failed_tries_count() -> None:
    bad = Completion("{}", usage=Usage(prompt=10, completion=1, cached=4))
    cut = Completion("{", finish_reason="length", usage=Usage(prompt=20, completion=2))
    good = Completion(json.dumps(GOOD), usage=Usage(prompt=40, completion=4))
    bench = Bench(bad, cut, faults.SERVER_ERROR, good)
    await bench.ask()
    assert bench.effort.usage == Usage(prompt=70, completion=7, cached=4)
    assert bench.effort.attempts == 4
    assert bench.effort.retried == {"schema": 1, "truncated": 1, "server": 1}


async def test_a_cut_reply_gets_a_larger_budget_once() -> None:
    bench = Bench(faults.TRUNCATED, faults.TRUNCATED)
    assert (await bench.fail()).raw == '{"title": "The first'
    assert bench.sent("max_tokens") == [100, 200]


@pytest.mark.parametrize(("room", "sent"), [(170, [100, 150]), (120, [100]), (None, [100, 200])])
async def test_the_larger_budget_is_no_larger_than_the_model_s_room(
    room: int | None, sent: list[int]
) -> None:
    cut = Completion("{", finish_reason="length", usage=Usage(prompt=20, completion=100))
    bench = Bench(cut, cut)
    bench.client.room = room
    failure = await bench.fail()
    assert failure.kind is Kind.TRUNCATED
    assert bench.sent("max_tokens") == sent
    assert ("no larger budget" in failure.message) is (sent == [100])


async def test_the_room_is_learned_from_the_list_of_models_and_from_a_refusal() -> None:
    bench = Bench(faults.PROMPT_TOO_LONG)
    assert bench.client.room is None
    await bench.fail()
    assert bench.client.room == 8192


@pytest.mark.parametrize("finish", ["repetition", "content_filter"])
async def test_a_reply_cut_short_gets_another_try_with_the_same_budget(finish: str) -> None:
    cut = Completion('{"title": "a a a', finish_reason=finish)
    bench = Bench(cut, cut)
    failure = await bench.fail()
    assert (failure.kind, failure.finish_reason) == (Kind.TRUNCATED, finish)
    assert finish in failure.message
    assert bench.sent("max_tokens") == [100, 100]


async def test_reasoning_gets_lower_effort_and_then_a_larger_budget() -> None:
    bench = Bench(faults.REASONING, faults.REASONING_CONTENT, faults.REASONING)
    assert (await bench.fail()).kind is Kind.REASONING
    assert bench.sent("reasoning_effort") == [None, "low", "low"]
    assert bench.sent("max_tokens") == [100, 100, 200]


@pytest.mark.parametrize("effort", ["none", "minimal", "low"])
@pytest.mark.parametrize("whose", ["request", "endpoint"])
async def test_effort_is_never_raised(effort: str, whose: str) -> None:
    bench = Bench(faults.REASONING, GOOD, **_of_endpoint(whose, reasoning_effort=effort))
    await bench.ask(replace(REQUEST, reasoning_effort=effort if whose == "request" else None))
    assert bench.sent("reasoning_effort") == [effort, effort]
    assert bench.sent("max_tokens") == [100, 200]


def _of_endpoint(whose: str, **settings: Any) -> dict[str, Any]:
    return settings if whose == "endpoint" else {}


async def test_a_re_ask_holds_the_last_error_only() -> None:
    bench = Bench("first", "second", GOOD)
    assert await bench.ask() == "yes"
    first, second, third = bench.sent("messages")
    assert first == list(REQUEST.messages)
    for sent, reply in ((second, "first"), (third, "second")):
        assert sent[:2] == first
        assert sent[2] == {"role": "assistant", "content": reply}
        assert sent[3]["role"] == "user"
        assert f"no title in {reply}" in sent[3]["content"]
        assert len(sent) == 4


async def test_a_re_ask_keeps_the_larger_budget() -> None:
    bench = Bench(faults.REASONING, faults.TRUNCATED, "no", GOOD)
    await bench.ask()
    assert bench.sent("max_tokens") == [100, 100, 200, 200]
    assert bench.sent("reasoning_effort") == [None, "low", "low", "low"]


async def test_a_refused_reply_is_kept() -> None:
    failure = await Bench("a", "b", "c").fail()
    assert (failure.kind, failure.message, failure.raw) == (Kind.SCHEMA, "no title in c", "c")


async def test_a_larger_budget_than_the_model_has_room_for_ends_as_truncated() -> None:
    bench = Bench(faults.TRUNCATED, faults.PROMPT_TOO_LONG)
    failure = await bench.fail()
    assert (failure.kind, failure.raw) == (Kind.TRUNCATED, '{"title": "The first')
    assert bench.effort.retried == {"truncated": 1, "request": 1}


@pytest.mark.parametrize(("timeout_s", "sent"), [(150, [100, 120]), (135, [100])])
async def test_the_larger_budget_is_no_larger_than_the_timeout_allows(
    timeout_s: float, sent: list[int]
) -> None:
    bench = Bench(faults.TRUNCATED, faults.TRUNCATED, timeout_s=timeout_s)
    failure = await bench.fail()
    assert (failure.kind, failure.raw) == (Kind.TRUNCATED, '{"title": "The first')
    assert bench.sent("max_tokens") == sent


async def test_each_request_has_an_id_of_its_own() -> None:
    bench = Bench(faults.RESET, "no", GOOD)
    await bench.ask()
    ids = [request.headers["x-request-id"] for request in bench.asked]
    assert ids == ["item-0", "item-1", "item-2"]


async def test_a_bug_in_the_task_kind_is_no_failure() -> None:
    class Broken(Titles):
        def validate(self, reply: Reply, payload: Any) -> Any:
            raise ZeroDivisionError

    bench = Bench(GOOD)
    with pytest.raises(ZeroDivisionError):
        await bench.asker.ask(Broken(None), REQUEST, None, bench.effort, "item")
    assert bench.permits.in_flight() == {"spark": 0}


async def test_nothing_is_asked_when_the_worker_stops() -> None:
    bench = Bench()
    bench.stopping.set()
    with pytest.raises(Stopping):
        await bench.ask()
    assert bench.fake.requests == []


async def test_a_pause_ends_when_the_worker_stops() -> None:
    bench = Bench(faults.rate_limited(retry_after=500), asker=Asker)
    asking = asyncio.create_task(bench.ask())
    await bench.fake.reached(1)
    await bench.fake.reached(0)
    bench.stopping.set()
    with pytest.raises(Stopping):
        async with asyncio.timeout(20):
            await asking


async def test_a_running_request_is_finished_when_the_worker_stops() -> None:
    bench = Bench(GOOD)
    bench.fake.hold()
    asking = asyncio.create_task(bench.ask())
    await bench.fake.reached(1)
    bench.stopping.set()
    bench.fake.release()
    assert await asking == "yes"
