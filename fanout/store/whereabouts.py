"""Where the open items of a job are: settled, in the tier's queue, with a worker, or nowhere.

A message waits in one of the queue's lists, moves to the hash `unacked` when a worker takes it,
and leaves that one after its item has settled; a worker that returns it moves it back. Nothing of
this can be read in one step without holding Redis up, so it is read in pages, in the order in
which a message moves on: queue, unacked, settled. What moves on meanwhile is seen at its next
place. What moves back meanwhile can be overlooked; that is why there is a second look, and after it
one at all the places between which messages move, the ends of the queue included, in one step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar, cast

import redis.asyncio

from fanout import keys
from fanout.queue import queue_of, task_id

_T = TypeVar("_T")

#: kombu's names: the lists of a queue by priority, and what is handed out.
_SEPARATOR = "\x06\x16"
_PRIORITIES = (0, 3, 6, 9)
UNACKED = "unacked"

#: Messages in the first page; the next ones follow from their size.
_PAGE = 100
_LARGEST_PAGE = 1000
#: Bytes of messages that one call looks through: about a millisecond of Redis' time.
_PAGE_BYTES = 2**20
#: Items in one call.
_ITEMS = 500
#: Messages at each end of a list that the last look takes in, and messages with workers up to which
#: there is one: it is a single step of Redis.
_ENDS = 200
_MOST_HELD = 10_000

# The id is looked for as text: a message's body, base64 and maybe long, is skipped that way and
# never decoded. A quotation mark in any text of the message has a backslash before it.
_ID_OF = """
local function id_of(message)
  local at = string.find(message, '"correlation_id"', 1, true)
  return at and string.match(message, '^"correlation_id": ?"([^"]*)"', at) or ''
end
"""

_IDS_OF = (
    _ID_OF
    + """
local ids, size = {}, 0
local function note(message)
  size = size + #message
  ids[#ids + 1] = id_of(message)
end
"""
)

# KEYS list; ARGV first, last. Returns [bytes looked through, ids]
_LIST_PAGE = (
    _IDS_OF
    + """
for _, message in ipairs(redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2])) do
  note(message)
end
return {size, ids}
"""
)

# KEYS hash; ARGV cursor, count. Returns [bytes looked through, ids, next cursor]
_HASH_PAGE = (
    _IDS_OF
    + """
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
for i = 2, #found[2], 2 do
  note(found[2][i])
end
return {size, ids, found[1]}
"""
)

# KEYS bitmap; ARGV ordinals. Returns their bits
_BITS_OF = """
local bits = {}
for i, ordinal in ipairs(ARGV) do
  bits[i] = redis.call('GETBIT', KEYS[1], ordinal)
end
return bits
"""

# KEYS bitmap, hash, lists…; ARGV messages at each end, then ordinal, id, … Returns the ordinals of
# which there is no trace at this moment
_CHECK = (
    _ID_OF
    + """
local left = {}
for i = 2, #ARGV, 2 do
  if redis.call('GETBIT', KEYS[1], ARGV[i]) == 0 then
    left[ARGV[i + 1]] = ARGV[i]
  end
end
local function note(message)
  left[id_of(message)] = nil
end
for i = 3, #KEYS do
  for _, message in ipairs(redis.call('LRANGE', KEYS[i], 0, ARGV[1] - 1)) do
    note(message)
  end
  for _, message in ipairs(redis.call('LRANGE', KEYS[i], -ARGV[1], -1)) do
    note(message)
  end
end
for _, message in ipairs(redis.call('HVALS', KEYS[2])) do
  note(message)
end
local ordinals = {}
for _, ordinal in pairs(left) do
  ordinals[#ordinals + 1] = ordinal
end
return ordinals
"""
)


def queue_lists(tier: str) -> tuple[str, ...]:
    """The Redis lists of a tier's queue, as kombu names them: one for each priority."""
    queue = queue_of(tier)
    return tuple(f"{queue}{_SEPARATOR}{step}" if step else queue for step in _PRIORITIES)


async def missing(
    client: redis.asyncio.Redis, job: str, tier: str, ordinals: Collection[int]
) -> set[int]:
    """Those of a job's open items that are neither settled, nor queued, nor with a worker.

    Costs Redis about a millisecond for each megabyte of messages in the queue and in `unacked`,
    whichever jobs they are of, in calls of about a millisecond: for a suspicion, not for a habit.
    Only where something seems to be missing is there a longer call, for what workers hold.

    Args:
        client: a client that returns bytes.
        job: the job's id.
        tier: names the queue.
        ordinals: the items in question.

    Raises:
        redis.exceptions.RedisError: Redis is away or refuses.
    """
    wanted = await _ids(job, await _unsettled(client, job, ordinals))
    for _ in range(2):
        wanted = await _unseen(client, job, tier, wanted)
    if not wanted or await client.hlen(UNACKED) > _MOST_HELD:
        return set(wanted.values())
    return await _untraced(client, job, tier, wanted)


async def _ids(job: str, ordinals: Collection[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for chunk in _chunks(sorted(ordinals)):
        found.update((task_id(job, ordinal), ordinal) for ordinal in chunk)
        await asyncio.sleep(0)  # a large window takes a while
    return found


async def _unseen(
    client: redis.asyncio.Redis, job: str, tier: str, wanted: dict[str, int]
) -> dict[str, int]:
    """One look; what of `wanted`, ordinals by task id, it has not met."""
    left = dict(wanted)
    places = [_listed(client, name) for name in queue_lists(tier)]
    for place in (*places, _handed_out(client)):
        async for page in place:
            for each in page:
                left.pop(each, None)
            if not left:
                return left
    unsettled = await _unsettled(client, job, left.values())
    return {identity: ordinal for identity, ordinal in left.items() if ordinal in unsettled}


async def _untraced(
    client: redis.asyncio.Redis, job: str, tier: str, wanted: dict[str, int]
) -> set[int]:
    call = cast(Callable[..., Awaitable[Any]], client.register_script(_CHECK))
    names = [keys.settled(job), UNACKED, *queue_lists(tier)]
    untraced: set[int] = set()
    for chunk in _chunks(list(wanted.items())):
        pairs = [part for identity, ordinal in chunk for part in (ordinal, identity)]
        untraced.update(map(int, await call(keys=names, args=[_ENDS, *pairs])))
    return untraced


async def _listed(client: redis.asyncio.Redis, name: str) -> AsyncIterator[Sequence[str]]:
    """The ids in a list, page by page.

    From the end where messages come in: one that comes shifts the others away from there, so they
    are met twice at most, and those that leave at the other end shift none.
    """
    call = cast(Callable[..., Awaitable[Any]], client.register_script(_LIST_PAGE))
    first, count = 0, _PAGE
    while True:
        size, ids = await call(keys=[name], args=[first, first + count - 1])
        yield [each.decode(errors="replace") for each in ids]
        if len(ids) < count:
            return
        first, count = first + count, _next_page(size, len(ids))


async def _handed_out(client: redis.asyncio.Redis) -> AsyncIterator[Sequence[str]]:
    """The ids of what workers hold, page by page; all that is there from the first to the last."""
    call = cast(Callable[..., Awaitable[Any]], client.register_script(_HASH_PAGE))
    cursor, count = b"0", _PAGE
    while True:
        size, ids, cursor = await call(keys=[UNACKED], args=[cursor, count])
        yield [each.decode(errors="replace") for each in ids]
        if cursor == b"0":
            return
        count = _next_page(size, len(ids))


def _next_page(size: int, count: int) -> int:
    return max(1, min(_LARGEST_PAGE, _PAGE_BYTES * max(count, 1) // max(size, 1)))


async def _unsettled(client: redis.asyncio.Redis, job: str, ordinals: Collection[int]) -> set[int]:
    call = cast(Callable[..., Awaitable[Any]], client.register_script(_BITS_OF))
    unsettled: set[int] = set()
    for chunk in _chunks(list(ordinals)):
        bits = await call(keys=[keys.settled(job)], args=chunk)
        unsettled.update(ordinal for ordinal, bit in zip(chunk, bits, strict=True) if not bit)
    return unsettled


def _chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for first in range(0, len(items), _ITEMS):
        yield items[first : first + _ITEMS]
