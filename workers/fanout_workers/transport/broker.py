"""The broker's side: Redis commands on kombu's keys."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import redis
from kombu.log import get_logger
from kombu.utils.json import dumps, loads

from .holdings import Place, Return
from .scripts import EXPIRED, FETCH, RENEW, RESTORE

logger = get_logger(__name__)

T = TypeVar("T")

#: How many messages a command may name; Lua's stack takes some 8,000 values.
_CHUNK = 1000


@dataclass(frozen=True)
class Keys:
    """The names of kombu's keys, with their prefix."""

    prefix: str
    unacked: str
    unacked_index: str
    sep: str
    priority_steps: tuple[int, ...]

    def of_queue(self, queue: str) -> list[str]:
        """The lists of a queue, highest priority (0) first."""
        return [self._of(queue, step) for step in self.priority_steps]

    def of_fetch(self, queues: Sequence[str]) -> list[str]:
        """The keys of `scripts.FETCH`."""
        lists = [self.of_queue(queue) for queue in queues]
        by_step = (key for step in zip(*lists, strict=True) for key in step)
        return [self.unacked, self.unacked_index, *by_step]

    def of_message(self, queue: str, message: dict[str, Any]) -> str:
        """The list of a queue that a message belongs to."""
        try:
            priority = max(0, min(9, int(message["properties"]["priority"])))
        except (TypeError, ValueError, KeyError):
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

    def fetch_one(self, queue: str) -> list[Any]:
        """Hand out one message of a queue; the reply of `scripts.FETCH`."""
        reply: list[Any] = self._fetch(keys=self.keys.of_fetch([queue]), args=[1, "0", "1"])
        return reply

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
                    self._put_back(pipe, item.tag, entry, [item.queue], item.place, "+inf")
            pipe.execute()

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
                queues = self._queues_of(tag, entry, lookup)
                if queues:
                    self._put_back(pipe, tag, entry, queues, Place.FRONT, deadline)
            restored += sum(pipe.execute())
        return restored

    def close(self) -> None:
        """Close the connections that nobody uses: another thread may be in a command."""
        self._client.close()
        self._client.connection_pool.disconnect(inuse_connections=False)

    def _queues_of(
        self, tag: Any, entry: Any, lookup: Callable[[str, str], Iterable[str]]
    ) -> list[str]:
        try:
            _, exchange, routing_key = loads(entry)
            queues = [queue for queue in lookup(exchange, routing_key) if queue]
        except ValueError as error:
            queues, exchange, routing_key = [], repr(error), ""
        if not queues:
            logger.error(
                "The unacknowledged message %r stays where it is: no queue for exchange %r and "
                "routing key %r",
                *(tag, exchange, routing_key),
            )
        return queues

    def _put_back(
        self, pipe: Any, tag: Any, entry: Any, queues: list[str], place: Place, deadline: Any
    ) -> None:
        message = loads(entry)[0]
        try:
            message["headers"]["redelivered"] = True
            message["properties"]["delivery_info"]["redelivered"] = True
        except (KeyError, TypeError):
            pass  # as kombu does: a message of another format goes back as it came
        lists = [self.keys.of_message(queue, message) for queue in queues]
        self._restore(
            keys=[self.keys.unacked, self.keys.unacked_index, *lists],
            args=[tag, place.value, deadline, dumps(message)],
            client=pipe,
        )


def _chunks(items: Sequence[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk
