"""Faults of Redis."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from chaoskit.faults.base import Fault

if TYPE_CHECKING:
    from chaoskit.plan import Fleet
    from chaoskit.rig import Rig

#: What is no message at all.
GARBAGE = (
    b"this is no JSON",
    b"[]",
    b"{}",
    b'{"body": 1, "headers": {}, "properties": {}}',
    b"\xff\xfe\x00\x01",
)


def _task(number: int, **changed: Any) -> bytes:
    message = {
        "body": "W1tdLCB7fSwge31d",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": "fanout.extract", "id": f"chaos-{number}"},
        "properties": {
            "body_encoding": "base64",
            "correlation_id": f"chaos-{number}",
            "delivery_tag": f"chaos-{number}",
            "delivery_info": {"exchange": "", "routing_key": "fanout.default"},
        },
    }
    return json.dumps({**message, **changed}).encode()


#: Messages in Celery's form, of which no item can be made.
ROTTEN = (
    _task(1, body="!"),
    _task(2, headers={"lang": "py", "task": "no.such.task", "id": "chaos-2"}),
    _task(3, **{"content-type": "application/x-python-serialize", "content-encoding": "binary"}),
    _task(4, body=base64.b64encode(b"[[], {}").decode()),
    _task(5, body=base64.b64encode(b'[[1, 2], {"id": 7}, {}]').decode()),
    _task(6, headers={}),
    _task(7),
)


class _Broker(Fault):
    # `fanout worker` does not start without Redis.
    worker_codes: ClassVar[frozenset[int]] = frozenset({2})

    @property
    def loses_broker(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class KillRedis(_Broker):
    """SIGKILL to Redis; it comes back with its append-only file."""

    name: ClassVar[str] = "kill-redis"
    back_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.uniform(0.1, 3.0))

    async def strike(self, rig: Rig) -> None:
        await rig.restart_redis(signal.SIGKILL, self.back_s)


@dataclass(frozen=True, slots=True)
class TermRedis(_Broker):
    """SIGTERM to Redis; it comes back with its append-only file."""

    name: ClassVar[str] = "term-redis"
    back_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.uniform(0.1, 3.0))

    async def strike(self, rig: Rig) -> None:
        await rig.restart_redis(signal.SIGTERM, self.back_s)


@dataclass(frozen=True, slots=True)
class EmptyRedis(_Broker):
    """SIGKILL to Redis; it comes back without any data."""

    name: ClassVar[str] = "empty-redis"
    once: ClassVar[bool] = True
    asks_twice: ClassVar[bool] = True
    holds_on: ClassVar[bool] = True
    back_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.uniform(0.1, 2.0))

    async def strike(self, rig: Rig) -> None:
        await rig.restart_redis(signal.SIGKILL, self.back_s, empty=True)


@dataclass(frozen=True, slots=True)
class TornRedis(_Broker):
    """SIGKILL to Redis; it comes back without the last of what it had acknowledged.

    As after a power cut with `appendfsync everysec`: the end of its file never reached the disk.
    """

    name: ClassVar[str] = "torn-redis"
    once: ClassVar[bool] = True
    asks_twice: ClassVar[bool] = True
    holds_on: ClassVar[bool] = True
    torn_bytes: int

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.choice((500, 5_000, 50_000)))

    async def strike(self, rig: Rig) -> None:
        await rig.restart_redis(signal.SIGKILL, 0.3, torn_bytes=self.torn_bytes)


@dataclass(frozen=True, slots=True)
class PowerCut(_Broker):
    """SIGKILL to Redis, all workers and the command at once; all are started again."""

    name: ClassVar[str] = "power-cut"
    worker_codes: ClassVar[frozenset[int]] = frozenset({2, -signal.SIGKILL})
    asks_twice: ClassVar[bool] = True
    back_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.uniform(0.1, 2.0))

    async def strike(self, rig: Rig) -> None:
        for process in (rig.client, *rig.workers):
            process.send(signal.SIGKILL)
        await rig.restart_redis(signal.SIGKILL, self.back_s)


@dataclass(frozen=True, slots=True)
class StopRedis(_Broker):
    """Redis answers nothing for a while (SIGSTOP), as one that is stuck in a slow command."""

    name: ClassVar[str] = "stop-redis"
    asks_twice: ClassVar[bool] = True
    for_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.choice((0.3, 1.5, 4.0)))

    async def strike(self, rig: Rig) -> None:
        await rig.redis.suspend(self.for_s)


@dataclass(frozen=True, slots=True)
class FullRedis(_Broker):
    """Redis has no memory left for what is new (maxmemory, noeviction) for a while."""

    name: ClassVar[str] = "full-redis"
    asks_twice: ClassVar[bool] = True
    for_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.uniform(0.5, 4.0))

    async def strike(self, rig: Rig) -> None:
        await rig.ask_redis("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(self.for_s)
        await rig.ask_redis("CONFIG", "SET", "maxmemory", "0", again=True)


@dataclass(frozen=True, slots=True)
class RedisDiskFull(_Broker):
    """The disk of Redis is full for a while: no write to its append-only file succeeds.

    Synced every second it answers MISCONF to what would write, and keeps in memory what it had
    acknowledged; synced always it ends, and comes back when there is room.
    """

    name: ClassVar[str] = "redis-disk-full"
    asks_twice: ClassVar[bool] = True
    # If it is killed as well, what it had acknowledged last is gone.
    holds_on: ClassVar[bool] = True
    for_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.uniform(0.5, 6.0))

    async def strike(self, rig: Rig) -> None:
        await rig.fill_redis_disk(self.for_s)


#: Settings under which Redis refuses, and what takes them back: writes as a replica ("READONLY"),
#: everything as a replica without its master ("MASTERDOWN"), writes for want of replicas
#: ("NOREPLICAS"). Nothing listens at port 9.
_REFUSALS = {
    "READONLY": ("REPLICAOF 127.0.0.1 9", "REPLICAOF NO ONE"),
    "MASTERDOWN": (
        "CONFIG SET replica-serve-stale-data no;REPLICAOF 127.0.0.1 9",
        "REPLICAOF NO ONE",
    ),
    "NOREPLICAS": ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
}


@dataclass(frozen=True, slots=True)
class RefusingRedis(_Broker):
    """Redis answers, and refuses, for a while: as in a failover."""

    name: ClassVar[str] = "refusing-redis"
    asks_twice: ClassVar[bool] = True
    how: str
    for_s: float

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.choice(tuple(_REFUSALS)), dice.uniform(0.3, 5.0))

    async def strike(self, rig: Rig) -> None:
        begin, end = _REFUSALS[self.how]
        for command in begin.split(";"):
            await rig.ask_redis(*command.split())
        await asyncio.sleep(self.for_s)
        await rig.ask_redis(*end.split(), again=True)


@dataclass(frozen=True, slots=True)
class CutAll(_Broker):
    """CLIENT KILL of every connection."""

    name: ClassVar[str] = "cut-all"

    async def strike(self, rig: Rig) -> None:
        await rig.ask_redis("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await rig.ask_redis("CLIENT", "KILL", "TYPE", "pubsub")


@dataclass(frozen=True, slots=True)
class CutSome(_Broker):
    """CLIENT KILL of some connections, several times."""

    name: ClassVar[str] = "cut-some"
    salt: int

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.randrange(1_000_000))

    async def strike(self, rig: Rig) -> None:
        dice = random.Random(self.salt)
        for _ in range(4):
            listed = await rig.ask_redis("CLIENT", "LIST")
            for line in listed.decode().splitlines() if isinstance(listed, bytes) else ():
                if dice.random() < 0.4:
                    client = line.split()[0].removeprefix("id=")
                    await rig.ask_redis("CLIENT", "KILL", "ID", client)
            await asyncio.sleep(dice.uniform(0.05, 0.5))


@dataclass(frozen=True, slots=True)
class _Foreign(Fault):
    salt: int

    messages: ClassVar[tuple[bytes, ...]]

    @classmethod
    def draw(cls, dice: random.Random, fleet: Fleet) -> Self:
        return cls(dice.randrange(1_000_000))

    async def strike(self, rig: Rig) -> None:
        dice = random.Random(self.salt)
        for message in dice.sample(self.messages, dice.randint(1, len(self.messages))):
            await rig.ask_redis("LPUSH", rig.queue, message)


@dataclass(frozen=True, slots=True)
class Garbage(_Foreign):
    """What is in the queue and is no message."""

    name: ClassVar[str] = "garbage"
    messages: ClassVar[tuple[bytes, ...]] = GARBAGE


@dataclass(frozen=True, slots=True)
class RottenTasks(_Foreign):
    """Messages in the queue that have the form of Celery's, and are no items."""

    name: ClassVar[str] = "rotten-tasks"
    messages: ClassVar[tuple[bytes, ...]] = ROTTEN
