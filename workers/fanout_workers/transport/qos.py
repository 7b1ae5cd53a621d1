"""What a channel has delivered, and what becomes of it."""

from __future__ import annotations

from typing import Any

import redis as redis_py
from kombu.log import get_logger
from kombu.transport import redis

from .custody import Custody
from .holdings import Place

logger = get_logger(__name__)


class QoS(redis.QoS):
    """Counts what a channel has delivered; what Redis is told goes through the custody."""

    def can_consume(self) -> bool:
        """Whether there is room for one more message."""
        room = self.can_consume_max_estimate()
        return room is None or room > 0

    def can_consume_max_estimate(self) -> int | None:
        """How many more messages there is room for; None for any number.

        What runs although its connection was lost takes room, too.
        """
        if not self.prefetch_count:
            return None
        taken = len(self._delivered) + len(self.custody.holdings.lost)
        return max(0, self.prefetch_count - taken)

    @property
    def custody(self) -> Custody:
        """Where the messages of this broker are kept."""
        custody: Custody = self.channel.custody
        return custody

    def append(self, message: Any, delivery_tag: str) -> None:
        """The message is delivered. The fetch has noted it in Redis."""
        self._delivered[delivery_tag] = message

    def ack(self, delivery_tag: str) -> None:
        """The message is done with."""
        self._delivered.pop(delivery_tag, None)
        self.custody.holdings.settle(delivery_tag)
        self.channel.tell()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """The message is done with, or goes back to the end of its queue."""
        if not requeue:
            self.ack(delivery_tag)
            return
        self._delivered.pop(delivery_tag, None)
        self.custody.holdings.give_back(delivery_tag, Place.BACK)
        self.channel.tell()

    def restore_unacked(self, client: Any = None) -> None:
        """Give back all that this channel has delivered and nobody has acknowledged."""
        for tag in list(self._delivered):
            self.custody.holdings.give_back(tag, Place.FRONT)
        self._delivered.clear()
        self.channel.tell(at_once=True)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """The channel is closed: keep what runs if the connection was lost, or give it back."""
        self._on_collect.cancel()
        if not self.restore_at_shutdown or not self.channel.do_restore:
            return
        delivered = dict(self._delivered)
        self._delivered.clear()
        if self.channel.is_lost:
            self.custody.holdings.lose(delivered)
            return
        # Celery closes the channel of its remote control early, while tasks still run.
        if self.channel.has_hub and self.channel.serves:  # what an earlier connection has left
            delivered.update(dict.fromkeys(self.custody.holdings.lost))
        if delivered:
            logger.info("Restoring %r unacknowledged message(s)", len(delivered))
        self.custody.holdings.lose(dict.fromkeys(delivered))
        try:
            self.custody.flush()
        except redis_py.RedisError as error:
            logger.warning("Redis is away; what it has to be told has to wait: %r", error)

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:
        """Hand out again what a worker has held for longer than the visibility timeout."""
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        try:
            count = self.custody.redeliver(num, self.channel._lookup)
        except redis_py.ResponseError as error:  # full, read-only: it will be asked again
            logger.warning("Cannot look for what silent workers hold: %r", error)
            return
        if count:
            logger.warning("%d messages of silent workers are handed out again", count)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Give one message back."""
        self._delivered.pop(tag, None)
        self.custody.holdings.give_back(tag, Place.BACK if leftmost else Place.FRONT)
        self.channel.tell()
