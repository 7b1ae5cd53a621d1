"""The job store on Redis or Valkey."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

import orjson
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fanout import keys
from fanout.errors import JobError, Unavailable
from fanout.queue import message_of, queue_of
from fanout.store import scripts
from fanout.store.base import (
    Batch,
    Checkpoint,
    Counts,
    Decided,
    EndpointInfo,
    Forgotten,
    JobInfo,
    JobState,
    Pulse,
    Records,
    Restored,
    WorkerInfo,
)
from fanout.store.checkup import Checkup
from fanout.store.connecting import client_of
from fanout.store.ending import end_queued
from fanout.store.recovery import Recovery
from fanout.store.settling import Ending, Settling
from fanout.store.whereabouts import missing
from fanout.wire import STATUSES, Item, JobSpec, Record

#: Decisions of the controller that are kept for each endpoint.
_DECISIONS = 500

_COUNTS = ("submitted", "ok", "invalid", "failed", "skipped", "cancelled")

#: Redis may restart with all its data within this; a call that waits longer is given up.
_RETRIES = 8


#: Seconds that one answer may take.
_ANSWER_S = 10.0
#: Seconds that the first sign of life may take.
_PING_S = 3.0
#: Seconds for which the name of a worker that has gone silent is kept.
_NAMED_S = 3600.0
#: Bytes of records in one read, about: few records may be large ones.
_READ_BYTES = 4 * 2**20
#: Longest wait in a read, in seconds: well before the connection would count as dead.
_BLOCK_S = 2.0


def connect_redis(url: str, retries: int = _RETRIES) -> redis.asyncio.Redis:
    """A client that rides out a short absence of the server (about 15 s, by default)."""
    return client_of(
        url,
        retry=Retry(ExponentialBackoff(cap=4.0, base=0.1), retries),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
        socket_connect_timeout=5.0,
        socket_timeout=_ANSWER_S,
        socket_keepalive=True,
        health_check_interval=25,
    )


class RedisStore:
    """`Store` on Redis ≥ 7 or Valkey.

    Args:
        client: a redis-py asyncio client that returns bytes; `connect_redis` makes one.
        name: the server's address for messages, without its password.
        url: where a first look connects to without riding out an absence.
        linger_s: how long an item that ends may wait for others to end with, in seconds.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        name: str = "Redis",
        url: str | None = None,
        linger_s: float = 0.0,
    ) -> None:
        # redis-py's annotations of its answers change from version to version.
        self._redis: Any = client
        self._name = name
        self._url = url
        self._create = client.register_script(scripts.CREATE)
        self._set_state = client.register_script(scripts.SET_STATE)
        self._settle = client.register_script(scripts.SETTLE)
        self._submit = client.register_script(scripts.SUBMIT)
        self._recovery = Recovery(client)
        self._checkup = Checkup(client)
        self._read = client.register_script(scripts.READ)
        self._claim = client.register_script(scripts.CLAIM)
        self._unclaim = client.register_script(scripts.UNCLAIM)
        self._settling = Settling(self._end_all, linger_s)

    @classmethod
    def from_url(
        cls,
        url: str,
        name: str | None = None,
        linger_s: float = 0.0,
        retries: int = _RETRIES,
    ) -> RedisStore:
        """A store at that URL; nothing is connected yet."""
        return cls(connect_redis(url, retries), name or url, url, linger_s)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise Unavailable(f"Redis at {self._name} does not answer: {_reason(error)}") from error
        except RedisError as error:
            raise Unavailable(f"Redis at {self._name} refuses: {_reason(error)}") from error

    async def ping(self) -> None:
        if self._url is None:
            with self._answering():
                await self._redis.ping()
            return
        # A first look does not ride out an absence: who starts a command wants to know now.
        once: Any = client_of(
            self._url,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=_PING_S,
            socket_timeout=_PING_S,
        )
        try:
            with self._answering():
                await once.ping()
        finally:
            await once.aclose()

    async def eviction(self) -> str:
        with self._answering():
            return await self._checkup.eviction()

    async def create(self, job: str, spec: JobSpec) -> None:
        with self._answering():
            made = await self._create(
                keys=[keys.job(job), keys.JOBS],
                args=[job, spec.model_dump_json(), repr(time.time())],
            )
        if not made:
            raise JobError(f"there is already a job {job}")

    async def get(self, job: str) -> JobInfo:
        with self._answering():
            raw: dict[bytes, bytes] = await self._redis.hgetall(keys.job(job))
        if b"spec" not in raw:
            raise JobError(f"there is no job {job}")
        return JobInfo(
            id=job,
            spec=JobSpec.model_validate_json(raw[b"spec"]),
            state=cast(JobState, raw.get(b"state", b"open").decode()),
            counts=Counts(**{name: int(raw.get(name.encode(), 0)) for name in _COUNTS}),
            created_at=float(raw.get(b"created_at", 0)),
            input=Checkpoint(int(raw.get(b"next", 0)), raw.get(b"input", b"").decode()),
            output=raw[b"output"].decode() if b"output" in raw else None,
        )

    async def jobs(self, limit: int = 20) -> Sequence[str]:
        with self._answering():
            found = [job.decode() for job in await self._redis.zrevrange(keys.JOBS, 0, limit - 1)]
            async with self._redis.pipeline(transaction=False) as asked:
                for job in found:
                    asked.exists(keys.job(job))
                there = await asked.execute() if found else []
            gone = [job for job, exists in zip(found, there, strict=True) if not exists]
            if gone:  # kept as long as they had to be
                await self._redis.zrem(keys.JOBS, *gone)
        return [job for job in found if job not in gone]

    async def submit(
        self,
        job: str,
        spec: JobSpec,
        items: Sequence[Item],
        *,
        rejected: Sequence[Record] = (),
        upto: Checkpoint | None = None,
    ) -> None:
        messages = [message_of(item, spec.kind, spec.tier, results=spec.results) for item in items]
        given: list[Item | Record] = [*items, *rejected]
        ordinals = sorted(each.ordinal for each in given if each.ordinal is not None)
        if not ordinals:
            return
        args: list[Any] = [ordinals[0], upto.count if upto else ordinals[-1] + 1]
        args += (upto.digest if upto else "", int(upto is not None), len(rejected))
        for record in rejected:
            args += (record.ordinal, record.status, record.to_json())
        with self._answering():
            queued = await self._submit(
                keys=[keys.job(job), queue_of(spec.tier), keys.settled(job), keys.records(job)],
                args=[*args, *messages],
            )
        if queued == -1:
            raise Forgotten(f"there is no job {job}")
        if queued == -2:
            raise Forgotten(f"Redis at {self._name} has lost a part of job {job}")

    async def settle(self, job: str, ordinal: int, record: Record) -> bool:
        return await self._end(job, ordinal, record, submitted=False)

    async def has_ended(self, job: str, ordinal: int) -> bool:
        with self._answering():
            return bool(await self._redis.getbit(keys.settled(job), ordinal))

    async def reject(self, job: str, ordinal: int, record: Record) -> bool:
        return await self._end(job, ordinal, record, submitted=True)

    async def _end(self, job: str, ordinal: int, record: Record, *, submitted: bool) -> bool:
        ending = Ending(ordinal, record.status, record.to_json(), submitted)
        return await self._settling.end(job, ending)

    async def _end_all(self, job: str, endings: Sequence[Ending]) -> list[bool | Exception]:
        args: list[Any] = []
        for ending in endings:
            args += (ending.ordinal, ending.status, ending.record, int(ending.submitted))
        with self._answering():
            won: list[int | bytes] = await self._settle(
                keys=[keys.job(job), keys.settled(job), keys.records(job)], args=args
            )
        return [bool(each) if isinstance(each, int) else self._refused(each) for each in won]

    def _refused(self, words: bytes | str) -> Unavailable:
        told = words.decode(errors="replace") if isinstance(words, bytes) else words
        return Unavailable(f"Redis at {self._name} refuses: {told}")

    async def seal(self, job: str) -> None:
        await self._become(job, "sealed")

    async def pause(self, job: str) -> None:
        await self._become(job, "paused")

    async def cancel(self, job: str) -> None:
        await self._become(job, "cancelled")

    async def end_queued(self, job: str, record_of: Callable[[Item], Record]) -> int:
        spec = (await self.get(job)).spec

        async def end(item: Item) -> None:
            if item.ordinal is not None:
                await self.settle(job, item.ordinal, record_of(item))

        with self._answering():
            return await end_queued(self._redis, queue_of(spec.tier), job, end)

    async def release(self, job: str, ordinal: int) -> bool:
        with self._answering():
            return await self._recovery.release(job, ordinal)

    async def restore(
        self,
        job: str,
        spec: JobSpec,
        upto: Checkpoint,
        written: bytes | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Restored:
        with self._answering():
            return await self._recovery.restore(job, spec, time.time(), upto, written, counts)

    async def withdraw(self, job: str, ordinals: Collection[int]) -> set[int]:
        with self._answering():
            return await self._recovery.withdraw(job, ordinals)

    async def resubmit(self, job: str, spec: JobSpec, items: Sequence[Item]) -> None:
        if items:
            with self._answering():
                await self._recovery.resubmit(job, spec, items)

    async def missing(self, job: str, tier: str, ordinals: Collection[int]) -> set[int]:
        with self._answering():
            return await missing(self._redis, job, tier, ordinals)

    async def pulse(self, job: str) -> Pulse:
        with self._answering():
            return await self._checkup.pulse(job)

    async def settled(self, job: str) -> bytes:
        with self._answering():
            return await self._redis.get(keys.settled(job)) or b""

    async def keep(self, job: str, seconds: float) -> None:
        with self._answering():
            async with self._redis.pipeline(transaction=True) as all_of_it:
                for key in (keys.job, keys.settled, keys.records, keys.dropped):
                    all_of_it.expire(key(job), max(1, round(seconds)))
                await all_of_it.execute()

    async def note_output(self, job: str, output: str) -> None:
        with self._answering():
            await self._redis.hset(keys.job(job), "output", output)

    async def _become(self, job: str, state: JobState) -> None:
        with self._answering():
            known = await self._set_state(keys=[keys.job(job)], args=[state, *STATUSES])
        if not known:
            raise JobError(f"there is no job {job}")

    async def state(self, job: str) -> JobState | None:
        with self._answering():
            raw = await self._redis.hget(keys.job(job), "state")
        return cast(JobState, raw.decode()) if raw else None

    async def read(self, job: str, after: str, limit: int, block_s: float) -> Batch:
        batch = await self._read_now(job, after, limit)
        if batch.records or block_s <= 0:
            return batch
        with self._answering():
            # A block of 0 means for ever, so the shortest wait is a millisecond.
            block = max(1, round(min(block_s, _BLOCK_S) * 1000))
            came = await self._redis.xread({keys.records(job): after}, count=1, block=block)
        return await self._read_now(job, after, limit) if came else batch

    async def _read_now(self, job: str, after: str, limit: int) -> Batch:
        with self._answering():
            last, lines, ordinals = await self._read(
                keys=[keys.records(job)], args=[after, limit, _READ_BYTES]
            )
        numbers = [int(ordinal) if ordinal else None for ordinal in ordinals]
        return Batch(Records.of(lines.split(b"\n") if lines else (), numbers), last.decode())

    async def trim(self, job: str, upto: str) -> None:
        milliseconds, _, sequence = upto.partition("-")
        with self._answering():
            await self._redis.xtrim(
                keys.records(job), minid=f"{milliseconds}-{int(sequence) + 1}", approximate=False
            )

    async def claim(self, job: str, holder: str, ttl_s: float, gone: str = "") -> str:
        with self._answering():
            args: list[str | int] = [holder, round(ttl_s * 1000), gone]
            return str((await self._claim(keys=[keys.collector(job)], args=args)).decode())

    async def unclaim(self, job: str, holder: str) -> None:
        with self._answering():
            await self._unclaim(keys=[keys.collector(job)], args=[holder])

    async def unread(self, job: str) -> int:
        with self._answering():
            return int(await self._redis.xlen(keys.records(job)))

    async def report_worker(self, info: WorkerInfo, ttl_s: float) -> None:
        now = time.time()
        with self._answering():
            async with self._redis.pipeline(transaction=True) as both:
                both.set(keys.worker(info.name), orjson.dumps(asdict(info)), px=round(ttl_s * 1000))
                both.zadd(keys.WORKERS, {info.name: now})
                both.zremrangebyscore(keys.WORKERS, 0, now - _NAMED_S)
                await both.execute()

    async def forget_worker(self, info: WorkerInfo) -> None:
        with self._answering():
            async with self._redis.pipeline(transaction=True) as both:
                both.delete(keys.worker(info.name))
                both.zrem(keys.WORKERS, info.name)
                await both.execute()

    async def workers(self, tier: str | None = None) -> Sequence[WorkerInfo]:
        found: list[WorkerInfo] = []
        with self._answering():
            # By a list of names: a search would go through the results of every item, too.
            names = [name.decode() for name in await self._redis.zrange(keys.WORKERS, 0, -1)]
            values = await self._redis.mget(map(keys.worker, names)) if names else []
        for value in values:
            if value is not None:
                raw = orjson.loads(value)
                found.append(WorkerInfo(**{**raw, "kinds": tuple(raw["kinds"])}))
        return sorted(
            (worker for worker in found if tier in (None, worker.tier)), key=lambda w: w.name
        )

    async def queued(self, tier: str) -> int:
        with self._answering():
            return int(await self._redis.llen(queue_of(tier)))

    async def endpoint(self, name: str) -> EndpointInfo:
        with self._answering():
            raw = await self._redis.hgetall(keys.endpoint(name))
            now_s, _ = await self._redis.time()
        parts: dict[str, int] = {}
        ghosts: dict[str, int] = {}
        for key, value in raw.items():
            kind, _, holder = key.decode().partition(":")
            if f"{kind}:" not in (keys.LEASE, keys.GHOST):
                continue
            figures = [int(figure) for figure in value.split()]
            if figures[2] > now_s * 1000:  # both end there
                (parts if f"{kind}:" == keys.LEASE else ghosts)[holder] = figures[0]
        by_hand, auto = (raw.get(field.encode()) for field in (keys.CONCURRENCY, keys.AUTO))
        return EndpointInfo(
            int(by_hand) if by_hand else None, parts, int(float(auto)) if auto else None, ghosts
        )

    async def set_concurrency(self, name: str, concurrency: int | None) -> None:
        with self._answering():
            if concurrency is None:
                await self._redis.hdel(keys.endpoint(name), keys.CONCURRENCY)
            else:
                await self._redis.hset(keys.endpoint(name), keys.CONCURRENCY, concurrency)

    async def steer(self, name: str, decided: Decided) -> None:
        with self._answering():
            async with self._redis.pipeline(transaction=True) as both:
                both.hset(keys.endpoint(name), keys.AUTO, decided.n)
                both.xadd(
                    keys.decisions(name), {"d": orjson.dumps(decided)}, maxlen=_DECISIONS,
                    approximate=False,
                )  # fmt: skip
                await both.execute()

    async def decisions(self, name: str, limit: int = 20) -> Sequence[Decided]:
        with self._answering():
            found = await self._redis.xrevrange(keys.decisions(name), count=limit)
        return [Decided(**orjson.loads(fields[b"d"])) for _, fields in found]

    async def unsteer(self, name: str) -> None:
        with self._answering():
            await self._redis.hdel(keys.endpoint(name), keys.AUTO)

    async def aclose(self) -> None:
        await self._redis.aclose()


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    return text or type(error).__name__
