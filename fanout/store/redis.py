"""The job store on Redis or Valkey."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
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
from fanout.store.base import Batch, Counts, Decided, EndpointInfo, JobInfo, JobState, WorkerInfo
from fanout.store.connecting import client_of
from fanout.store.settling import Ending, Settling
from fanout.wire import Item, JobSpec, Record

# KEYS job, jobs; ARGV id, spec, time
# A client that lost the reply asks again with the same time: that is no second job.
_CREATE = """
local made = redis.call('HGET', KEYS[1], 'created_at')
if made then
  return made == ARGV[3] and 1 or 0
end
redis.call('HSET', KEYS[1], 'spec', ARGV[2], 'state', 'open', 'created_at', ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
return 1
"""

# KEYS job; ARGV state. Cancelled is final: a client that still feeds must not seal it back to life.
_SET_STATE = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
  return 0
end
if state ~= 'cancelled' then
  redis.call('HSET', KEYS[1], 'state', ARGV[1])
end
return 1
"""

# KEYS job, settled, records; ARGV for each item: ordinal, status, record, count-as-submitted (0, 1)
# Each item has its own outcome, 1, 0 or an error in words: one that Redis refuses must not keep the
# others from ending. The record comes before its bit: a bit without a record would lose the item.
_SETTLE = """
local known = redis.call('EXISTS', KEYS[1]) == 1
local won, counts = {}, {}
for i = 1, #ARGV, 4 do
  local outcome = 0
  local ended = known and redis.pcall('GETBIT', KEYS[2], ARGV[i])
  if ended == 0 then
    ended = redis.pcall('XADD', KEYS[3], '*', 'r', ARGV[i + 2])
    if type(ended) == 'string' then
      redis.call('SETBIT', KEYS[2], ARGV[i], 1)
      counts[ARGV[i + 1]] = (counts[ARGV[i + 1]] or 0) + 1
      if ARGV[i + 3] == '1' then
        counts['submitted'] = (counts['submitted'] or 0) + 1
      end
      outcome = 1
    end
  end
  if type(ended) == 'table' and ended.err then
    outcome = ended.err
  end
  won[#won + 1] = outcome
end
for name, count in pairs(counts) do
  redis.call('HINCRBY', KEYS[1], name, count)
end
return won
"""

# KEYS job, queue; ARGV first ordinal, next ordinal, messages…
# A client that lost the reply sends the same batch again: `next` makes that harmless.
_SUBMIT = """
if redis.call('EXISTS', KEYS[1]) == 0 then
  return -1
end
if tonumber(redis.call('HGET', KEYS[1], 'next') or '0') > tonumber(ARGV[1]) then
  return 0
end
redis.call('HSET', KEYS[1], 'next', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'submitted', #ARGV - 2)
for i = 3, #ARGV do
  redis.call('LPUSH', KEYS[2], ARGV[i])
end
return 1
"""

#: Decisions of the controller that are kept for each endpoint.
_DECISIONS = 500

_COUNTS = ("submitted", "ok", "invalid", "failed", "skipped", "cancelled")

#: Redis may restart with all its data within this; a call that waits longer is given up.
_RETRIES = 8


#: Seconds that one answer may take.
_ANSWER_S = 10.0
#: Seconds that the first sign of life may take.
_PING_S = 3.0
#: Longest wait in a read, in seconds: well before the connection would count as dead.
_BLOCK_S = 2.0


def connect_redis(url: str) -> redis.asyncio.Redis:
    """A client that rides out a short absence of the server (about 15 s)."""
    return client_of(
        url,
        retry=Retry(ExponentialBackoff(cap=4.0, base=0.1), _RETRIES),
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
        self._create = client.register_script(_CREATE)
        self._set_state = client.register_script(_SET_STATE)
        self._settle = client.register_script(_SETTLE)
        self._submit = client.register_script(_SUBMIT)
        self._settling = Settling(self._end_all, linger_s)

    @classmethod
    def from_url(cls, url: str, name: str | None = None, linger_s: float = 0.0) -> RedisStore:
        """A store at that URL; nothing is connected yet."""
        return cls(connect_redis(url), name or url, url, linger_s)

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
        )

    async def jobs(self, limit: int = 20) -> Sequence[str]:
        with self._answering():
            found = await self._redis.zrevrange(keys.JOBS, 0, limit - 1)
        return [job.decode() for job in found]

    async def submit(self, job: str, spec: JobSpec, items: Sequence[Item]) -> None:
        messages = [message_of(item, spec.kind, spec.tier, results=spec.results) for item in items]
        ordinals = [item.ordinal for item in items if item.ordinal is not None]
        if not messages:
            return
        with self._answering():
            queued = await self._submit(
                keys=[keys.job(job), queue_of(spec.tier)],
                args=[ordinals[0], ordinals[-1] + 1, *messages],
            )
        if queued < 0:
            raise JobError(f"there is no job {job}")

    async def settle(self, job: str, ordinal: int, record: Record) -> bool:
        return await self._end(job, ordinal, record, submitted=False)

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

    async def cancel(self, job: str) -> None:
        await self._become(job, "cancelled")

    async def _become(self, job: str, state: JobState) -> None:
        with self._answering():
            known = await self._set_state(keys=[keys.job(job)], args=[state])
        if not known:
            raise JobError(f"there is no job {job}")

    async def state(self, job: str) -> JobState | None:
        with self._answering():
            raw = await self._redis.hget(keys.job(job), "state")
        return cast(JobState, raw.decode()) if raw else None

    async def read(self, job: str, after: str, limit: int, block_s: float) -> Batch:
        with self._answering():
            # A block of 0 means for ever, so the shortest wait is a millisecond.
            block = max(1, round(min(block_s, _BLOCK_S) * 1000)) if block_s > 0 else None
            found = await self._redis.xread({keys.records(job): after}, count=limit, block=block)
        # RESP2 answers a list of [stream, entries], RESP3 a mapping of stream to [entries].
        streams = (
            [pages[0] for pages in found.values()]
            if isinstance(found, dict)
            else [entries for _, entries in found or ()]
        )
        entries = streams[0] if streams else []
        return Batch(
            [Record.model_validate_json(fields[b"r"]) for _, fields in entries],
            entries[-1][0].decode() if entries else after,
        )

    async def trim(self, job: str, upto: str) -> None:
        milliseconds, _, sequence = upto.partition("-")
        with self._answering():
            await self._redis.xtrim(
                keys.records(job), minid=f"{milliseconds}-{int(sequence) + 1}", approximate=False
            )

    async def unread(self, job: str) -> int:
        with self._answering():
            return int(await self._redis.xlen(keys.records(job)))

    async def report_worker(self, info: WorkerInfo, ttl_s: float) -> None:
        with self._answering():
            await self._redis.set(
                keys.worker(info.name), orjson.dumps(asdict(info)), px=round(ttl_s * 1000)
            )

    async def forget_worker(self, info: WorkerInfo) -> None:
        with self._answering():
            await self._redis.delete(keys.worker(info.name))

    async def workers(self, tier: str | None = None) -> Sequence[WorkerInfo]:
        found: list[WorkerInfo] = []
        with self._answering():
            names = [name async for name in self._redis.scan_iter(keys.worker("*"), count=1000)]
            values = await self._redis.mget(names) if names else []
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
