"""How records share calls to Redis, and what becomes of each when a call fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import fakeredis
import pytest
from fakeredis import FakeAsyncRedis

from fanout import keys
from fanout.errors import Unavailable
from fanout.store import Counts, RedisStore, settling
from fanout.store.settling import Ending, Settling
from tests.store_contract import SPEC, items, read_ids, record

pytestmark = pytest.mark.anyio


class Redis:
    """Takes the place of the script; answers when it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.answer = asyncio.Event()
        self.errors: list[Exception] = []

    async def settle(self, job: str, endings: Sequence[Ending]) -> Sequence[bool | Exception]:
        self.calls.append((job, [ending.ordinal for ending in endings]))
        await self.answer.wait()
        if self.errors:
            raise self.errors.pop()
        return [True] * len(endings)


def ending(ordinal: int, size: int = 2) -> Ending:
    return Ending(ordinal, "ok", b"x" * size, False)


async def begun(settling: Settling, job: str, *endings: Ending) -> list[asyncio.Task[bool]]:
    tasks = [asyncio.create_task(settling.end(job, each)) for each in endings]
    for _ in range(3):  # to begin, to send, to be under way
        await asyncio.sleep(0)
    return tasks


async def test_what_comes_while_a_call_is_under_way_shares_the_next() -> None:
    redis = Redis()
    ends = Settling(redis.settle)
    first = await begun(ends, "j", ending(0))
    then = await begun(ends, "j", ending(1), ending(2))
    then += await begun(ends, "j", ending(3))
    assert redis.calls == [("j", [0])]
    redis.answer.set()
    assert await asyncio.gather(*first, *then) == [True] * 4
    assert redis.calls == [("j", [0]), ("j", [1, 2, 3])]


async def test_jobs_do_not_wait_for_each_other() -> None:
    redis = Redis()
    ends = Settling(redis.settle)
    tasks = await begun(ends, "j", ending(0)) + await begun(ends, "k", ending(0))
    assert redis.calls == [("j", [0]), ("k", [0])]
    redis.answer.set()
    assert await asyncio.gather(*tasks) == [True, True]
    assert not ends._lines


async def test_a_call_carries_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "_MOST", 3)
    monkeypatch.setattr(settling, "_MOST_BYTES", 10)
    redis = Redis()
    redis.answer.set()
    ends = Settling(redis.settle)
    sizes = [2, 2, 2, 2, 20, 9, 1, 1]
    tasks = [ends.end("j", ending(n, size)) for n, size in enumerate(sizes)]
    assert await asyncio.gather(*tasks) == [True] * len(sizes)
    assert [ordinals for _, ordinals in redis.calls] == [[0, 1, 2], [3], [4], [5, 6], [7]]


async def test_a_call_waits_for_company_only_after_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settling, "_ENOUGH", 3)
    redis = Redis()
    redis.answer.set()
    ends = Settling(redis.settle, linger_s=3600.0)
    assert await ends.end("j", ending(0)) is True
    tasks = await begun(ends, "j", ending(1), ending(2))
    assert redis.calls == [("j", [0])]
    tasks += await begun(ends, "j", ending(3))  # that is enough
    assert await asyncio.gather(*tasks) == [True] * 3
    assert redis.calls == [("j", [0]), ("j", [1, 2, 3])]


async def test_a_call_does_not_wait_for_company_for_ever() -> None:
    redis = Redis()
    redis.answer.set()
    ends = Settling(redis.settle, linger_s=0.01)
    for number in range(3):
        assert await ends.end("j", ending(number)) is True
    assert len(redis.calls) == 3
    async with asyncio.timeout(10):
        while ends._lines:  # whoever comes after a pause goes at once
            await asyncio.sleep(0)


async def test_a_failed_call_is_told_to_each_of_its_callers_and_no_other() -> None:
    redis = Redis()
    ends = Settling(redis.settle)
    failing = await begun(ends, "j", ending(0), ending(1))
    later = await begun(ends, "j", ending(2))
    redis.errors = [Unavailable("Redis does not answer")]
    redis.answer.set()
    errors = await asyncio.gather(*failing, return_exceptions=True)
    assert [str(error) for error in errors] == ["Redis does not answer"] * 2
    assert errors[0] is not errors[1]
    assert await asyncio.gather(*later) == [True]


async def test_a_record_that_redis_refuses_does_not_fail_the_others() -> None:
    store = RedisStore(FakeAsyncRedis(server=fakeredis.FakeServer()))
    await store.create("j", SPEC)
    await store.submit("j", SPEC, items("j", 0, 2))
    good, bad, other = await asyncio.gather(
        store.settle("j", 0, record(0)),
        store.settle("j", -1, record(1)),
        store.settle("j", 1, record(1)),
        return_exceptions=True,
    )
    assert (good, other) == (True, True)
    assert isinstance(bad, Unavailable)
    assert "refuses" in str(bad)
    assert (await store.get("j")).counts == Counts(submitted=2, ok=2)
    assert await read_ids(store, "j") == ["doc-0", "doc-1"]
    await store.aclose()


async def test_an_item_whose_record_cannot_be_kept_has_not_ended() -> None:
    client = FakeAsyncRedis(server=fakeredis.FakeServer())
    store = RedisStore(client)
    await store.create("j", SPEC)
    await store.submit("j", SPEC, items("j", 0, 1))
    await client.set(keys.records("j"), "no stream")
    with pytest.raises(Unavailable, match="refuses"):
        await store.settle("j", 0, record(0))
    await client.delete(keys.records("j"))
    assert (await store.get("j")).counts == Counts(submitted=1)
    assert await store.settle("j", 0, record(0)) is True
    await store.aclose()
