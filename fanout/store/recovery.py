"""How a job goes on after a pause or a crash, in Lua.

Each script can be sent again when its reply was lost: it leaves the same ledger.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha1
from typing import Any

import redis.asyncio

from fanout import keys
from fanout.errors import JobError
from fanout.queue import message_of, queue_of
from fanout.store.base import Checkpoint, Restored
from fanout.wire import STATUSES, Item, JobSpec

# KEYS job, jobs, settled, records, dropped; ARGV id, spec, time, next, digest, 1 if the bitmap
# stands for what has ended or 0 if the store does, bitmap, counts of the written by status…
_RESTORE = """
if redis.call('HGET', KEYS[1], 'state') == 'cancelled' then
  return {-1}
end
if tonumber(redis.call('HGET', KEYS[1], 'next') or '0') > tonumber(ARGV[4]) then
  return {-2}
end
if redis.call('HSETNX', KEYS[1], 'created_at', ARGV[3]) == 1 then
  redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
end
redis.call('HSET', KEYS[1], 'spec', ARGV[2], 'state', 'open', 'next', ARGV[4], 'input', ARGV[5],
  'submitted', ARGV[4])
if ARGV[6] == '1' then
  local counts = {}
  for i = 8, #ARGV, 2 do
    counts[ARGV[i]] = tonumber(ARGV[i + 1])
  end
  if #ARGV[7] > 0 then
    redis.call('SET', KEYS[3], ARGV[7])
  else
    redis.call('DEL', KEYS[3])
  end
  local from = '-'
  repeat
    local entries = redis.call('XRANGE', KEYS[4], from, '+', 'COUNT', 200)
    for _, entry in ipairs(entries) do
      local fields = {}
      for i = 1, #entry[2], 2 do
        fields[entry[2][i]] = entry[2][i + 1]
      end
      if redis.call('SETBIT', KEYS[3], fields.o, 1) == 1 then
        redis.call('XDEL', KEYS[4], entry[1])
      else
        counts[fields.s] = (counts[fields.s] or 0) + 1
      end
      from = '(' .. entry[1]
    end
  until #entries < 200
  for status, count in pairs(counts) do
    redis.call('HSET', KEYS[1], status, count)
  end
end
redis.call('HDEL', KEYS[1], 'withdrawn', 'resubmitted')
for _, key in ipairs({KEYS[1], KEYS[3], KEYS[4], KEYS[5]}) do
  redis.call('PERSIST', key)
end
return {1, redis.call('GET', KEYS[3]) or '', redis.call('SMEMBERS', KEYS[5])}
"""

# KEYS job, settled, dropped; ARGV token of the call, ordinals…
_WITHDRAW = """
local open = {}
for i = 2, #ARGV do
  if redis.call('GETBIT', KEYS[2], ARGV[i]) == 0 then
    open[#open + 1] = ARGV[i]
  end
end
if redis.call('HGET', KEYS[1], 'withdrawn') ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'withdrawn', ARGV[1])
  redis.call('HINCRBY', KEYS[1], 'submitted', -#open)
end
for _, ordinal in ipairs(open) do
  redis.call('SREM', KEYS[3], ordinal)
end
return open
"""

# KEYS job, queue, settled; ARGV token of the call, then for each item: ordinal, message
# One that ended meanwhile was not counted as submitted either: it is counted, and not queued.
_RESUBMIT = """
if redis.call('EXISTS', KEYS[1]) == 0 then
  return -1
end
if redis.call('HGET', KEYS[1], 'resubmitted') == ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'resubmitted', ARGV[1])
redis.call('HINCRBY', KEYS[1], 'submitted', (#ARGV - 1) / 2)
for i = 2, #ARGV, 2 do
  if redis.call('GETBIT', KEYS[3], ARGV[i]) == 0 then
    redis.call('LPUSH', KEYS[2], ARGV[i + 1])
  end
end
return 1
"""

# KEYS job, settled, dropped; ARGV ordinal
_RELEASE = """
if redis.call('HGET', KEYS[1], 'state') ~= 'paused' then
  return 0
end
if redis.call('GETBIT', KEYS[2], ARGV[1]) == 0 and redis.call('SADD', KEYS[3], ARGV[1]) == 1 then
  redis.call('HINCRBY', KEYS[1], 'submitted', -1)
end
return 1
"""

#: Ordinals in one call: a script holds Redis up while it runs.
_MOST = 5000


class Recovery:
    """The calls of the store on Redis by which a job goes on.

    Args:
        client: as `RedisStore` has it.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis: Any = client
        self._restore = client.register_script(_RESTORE)
        self._withdraw = client.register_script(_WITHDRAW)
        self._resubmit = client.register_script(_RESUBMIT)
        self._release = client.register_script(_RELEASE)

    async def restore(
        self,
        job: str,
        spec: JobSpec,
        now: float,
        upto: Checkpoint,
        written: bytes | None,
        counts: Mapping[str, int] | None,
    ) -> Restored:
        """As `Store.restore`."""
        told = counts or {}
        by_status = [part for status in STATUSES for part in (status, told.get(status, 0))]
        outcome = await self._restore(
            keys=[
                keys.job(job), keys.JOBS, keys.settled(job), keys.records(job), keys.dropped(job)
            ],
            args=[
                job, spec.model_dump_json(), repr(now), upto.count, upto.digest,
                int(written is not None), written or b"", *by_status,
            ],
        )  # fmt: skip
        if outcome[0] == -1:
            raise JobError(f"job {job} is cancelled, which is final")
        if outcome[0] == -2:
            raise JobError(f"somebody else has submitted more of job {job} meanwhile")
        return Restored(outcome[1], frozenset(map(int, outcome[2])))

    async def withdraw(self, job: str, ordinals: Collection[int]) -> set[int]:
        """As `Store.withdraw`."""
        found: set[int] = set()
        left = sorted(ordinals)
        for start in range(0, len(left), _MOST):
            part = left[start : start + _MOST]
            opened = await self._withdraw(
                keys=[keys.job(job), keys.settled(job), keys.dropped(job)],
                args=[_token(part), *part],
            )
            found.update(map(int, opened))
        return found

    async def resubmit(self, job: str, spec: JobSpec, items: Sequence[Item]) -> None:
        """As `Store.resubmit`."""
        args: list[Any] = [_token([item.ordinal for item in items])]
        for item in items:
            message = message_of(item, spec.kind, spec.tier, results=spec.results, resubmitted=True)
            args += (item.ordinal, message)
        outcome = await self._resubmit(
            keys=[keys.job(job), queue_of(spec.tier), keys.settled(job)], args=args
        )
        if outcome < 0:
            raise JobError(f"there is no job {job}")

    async def release(self, job: str, ordinal: int) -> bool:
        """As `Store.release`."""
        ended = await self._release(
            keys=[keys.job(job), keys.settled(job), keys.dropped(job)], args=[ordinal]
        )
        return bool(ended)


def _token(ordinals: Sequence[int | None]) -> str:
    """Names a call by its items: one that is repeated, by whomever, is the same call.

    `restore` forgets the tokens, since after it the same items may have to be told of anew.
    """
    return sha1(repr(ordinals).encode(), usedforsecurity=False).hexdigest()
