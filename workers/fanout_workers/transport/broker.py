"""The broker's side: Redis commands on kombu's keys."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import redis
from kombu.log import get_logger
from kombu.utils.json import dumps, loads

from .holdings import Discard, Place, Return
from .scripts import DISCARD, EXPIRED, FETCH, RENEW, RESTORE

logger = get_logger(__name__)

T = TypeVar("T")

#: How many messages a command may name; Lua's stack takes some 8,000 values.
_CHUNK = 1000

#: The header that says how often a message was handed out to a worker that ended without a word
#: about it; absent from one that never was. RabbitMQ's quorum queues call it so.
DELIVERY_COUNT = "x-delivery-count"


@dataclass(frozen=True)
class Keys:
    """The names of kombu's keys, with their prefix."""

    prefix: str
    unacked: str
    unacked_index: str
    sep: str
    priority_steps: tuple[int, ...]
    #: Stream of what is no message, if it is to be kept, how many, and what is too long for one.
    dead: str | None = None
    dead_limit: int = 0
    longest: int = 2**26

    def of_queue(self, queue: str) -> list[str]:
        """The lists of a queue, highest priority (0) first."""
        return [self._of(queue, step) for step in self.priority_steps]

    def of_fetch(self, queues: Sequence[str]) -> list[str]:
        """The keys of `scripts.FETCH`."""
        lists = [self.of_queue(queue) for queue in queues]
        by_step = (key for step in zip(*lists, strict=True) for key in step)
        return [*self.of_discard(), *by_step]

    def of_discard(self) -> list[str]:
        """The keys of `scripts.DISCARD`."""
        return [self.unacked, self.unacked_index, self.dead or ""]

    @property
    def limits(self) -> tuple[int, int]:
        """What the arguments of `scripts.FETCH` say of messages that are none."""
        return self.longest, self.dead_limit if self.dead else 0

    def of_message(self, queue: str, message: dict[str, Any]) -> str:
        """The list of a queue that a message belongs to."""
        try:
            priority = max(0, min(9, int(message["properties"]["priority"])))
        except (TypeError, ValueError, KeyError, OverflowError):
            priority = 0
        return self._of(queue, self.priority_steps[bisect(self.priority_steps, priority) - 1])

    def _of(self, queue: str, step: int) -> str:
        return f"{self.prefix}{queue}{self.sep}{step}" if step else f"{self.prefix}{queue}"


class Broker:
    """One Redis database as a broker. All methods raise redis-py's errors.

    Args:
        client: a client that adds no prefix of its own.
        keys: the names of the keys.
    """

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self.keys = keys
        self._client = client
        self._fetch = client.register_script(FETCH)
        self._renew = client.register_script(RENEW)
        self._expired = client.register_script(EXPIRED)
        self._restore = client.register_script(RESTORE)
        self._discard = client.register_script(DISCARD)

    def fetch_one(self, queue: str) -> list[Any]:
        """Hand out one message of a queue; the reply of `scripts.FETCH`."""
        longest, limit = self.keys.limits
        args: list[str | int] = [1, "0", "1", longest, limit]
        reply: list[Any] = self._fetch(keys=self.keys.of_fetch([queue]), args=args)
        return reply

    def waiting(self, queue: str) -> int:
        """How many messages are in a queue."""
        pipe = self._client.pipeline(transaction=False)
        for key in self.keys.of_queue(queue):
            pipe.llen(key)
        return sum(pipe.execute())

    def settle(self, tags: Sequence[str]) -> None:
        """Forget these messages; may be repeated."""
        for chunk in _chunks(tags):
            pipe = self._client.pipeline(transaction=False)
            pipe.zrem(self.keys.unacked_index, *chunk)
            pipe.hdel(self.keys.unacked, *chunk)
            pipe.execute()

    def note(self, tag: str, message: bytes, exchange: str, routing_key: str) -> None:
        """Note a message as handed out."""
        now = self._client.time()
        entry = b"[" + message + b", " + dumps([exchange, routing_key]).encode()[1:]
        pipe = self._client.pipeline()
        pipe.zadd(self.keys.unacked_index, {tag: now[0] + now[1] / 1e6})
        pipe.hset(self.keys.unacked, tag, entry)
        pipe.execute()

    def renew(self, tags: Sequence[str]) -> None:
        """Put off the redelivery of these, where they are still unacknowledged."""
        for chunk in _chunks(tags):
            self._renew(keys=[self.keys.unacked_index], args=chunk)

    def give_back(self, returns: Sequence[Return]) -> None:
        """Put these back into the queues that they came from; may be repeated."""
        for chunk in _chunks(returns):
            entries: list[Any] = self._client.hmget(self.keys.unacked, [item.tag for item in chunk])
            pipe = self._client.pipeline(transaction=False)
            for item, entry in zip(chunk, entries, strict=True):
                if entry is not None:
                    # Where it came from, whatever it says of exchange and routing key.
                    where = partial(_only, item.queue)
                    self._put_back(
                        *(pipe, item.tag, entry, where, item.place, "+inf"), counted=item.counted
                    )
            pipe.execute()

    def discard(self, discards: Iterable[Discard]) -> None:
        """Keep these among the dead letters; what is repeated is there twice."""
        for item in discards:
            self._bury(self._client, "", item.message, item.queue, item.reason)

    def redeliver(
        self, timeout_s: float, limit: int | None, lookup: Callable[[str, str], Iterable[str]]
    ) -> int:
        """Put back what was handed out more than `timeout_s` ago, `limit` at most; how many.

        `lookup` gives the queues by exchange and routing key.
        """
        args = [timeout_s, -1 if limit is None else limit]
        found = self._expired(keys=[self.keys.unacked, self.keys.unacked_index], args=args)
        deadline, pairs = found[0], found[1:]
        restored = 0
        # The youngest goes to the front first, so that the oldest ends up before it.
        youngest_first = list(zip(pairs[::2], pairs[1::2], strict=True))[::-1]
        for chunk in _chunks(youngest_first):
            pipe = self._client.pipeline(transaction=False)
            for tag, entry in chunk:
                self._put_back(pipe, tag, entry, lookup, Place.FRONT, deadline, counted=True)
            restored += sum(pipe.execute())
        return restored

    def close(self) -> None:
        """Close the connections that nobody uses: another thread may be in a command."""
        self._client.close()
        self._client.connection_pool.disconnect(inuse_connections=False)

    def _put_back(
        self,
        pipe: Any,
        tag: Any,
        entry: Any,
        lookup: Callable[[str, str], Iterable[str]],
        place: Place,
        deadline: Any,
        *,
        counted: bool,
    ) -> None:
        try:
            message, exchange, routing_key = loads(entry)
            queues = [queue for queue in lookup(exchange, routing_key) if queue]
            lists = [self.keys.of_message(queue, message) for queue in queues]
            again = dumps(_marked(message, counted=counted))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no message
            logger.error("An entry of %s is no message: %s", self.keys.unacked, type(error))
            self._bury(pipe, tag, entry, self.keys.unacked, type(error).__name__)
            return
        if not queues:
            logger.error(
                "The unacknowledged message %r stays where it is: no queue for exchange %r and "
                "routing key %r",
                *(tag, exchange, routing_key),
            )
            return
        self._restore(
            keys=[self.keys.unacked, self.keys.unacked_index, *lists],
            args=[tag, place.value, deadline, again],
            client=pipe,
        )

    def _bury(self, client: Any, tag: Any, message: Any, queue: str, reason: str) -> None:
        self._discard(
            keys=self.keys.of_discard(),
            args=[tag, message, self.keys.limits[1], queue, reason],
            client=client,
        )


def _marked(message: Any, *, counted: bool) -> Any:
    """The message as it is handed out again; raises AttributeError if it is none."""
    headers, properties = message.get("headers"), message.get("properties")
    info = properties.get("delivery_info")
    # What has another format goes back as it came, as with kombu.
    if isinstance(info, dict):
        info["redelivered"] = True
    if isinstance(headers, dict):
        headers["redelivered"] = True
        if counted:
            headers[DELIVERY_COUNT] = delivery_count(headers) + 1
    return message


def delivery_count(headers: Any) -> int:
    """How often a message with these headers was handed out to a worker that ended without a word.

    Anybody can write headers: what is no count is 0.
    """
    count = headers.get(DELIVERY_COUNT)
    return count if type(count) is int and count > 0 else 0


def _only(queue: str, exchange: str, routing_key: str) -> list[str]:
    return [queue]


def _chunks(items: Sequence[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk
