"""kombu's Redis channel, fetching and acknowledging by the batch."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from queue import Empty
from time import monotonic
from typing import Any, NamedTuple

import redis as redis_py
from kombu.log import get_logger
from kombu.transport import redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from kombu.utils.scheduling import round_robin_cycle

from .broker import Keys
from .custody import Custody, custody_of
from .form import problem_of
from .holdings import Place
from .message import Message, read_envelope
from .qos import QoS
from .scripts import FETCH

logger = get_logger(__name__)

#: Messages in one fetch, at most.
BATCH = 64
#: Acknowledgements in one fetch, at most.
_ACKS = 1000
#: How many of what is no message are told one by one.
_TOLD = 20
#: How long the hub may be kept by one batch of deliveries, in seconds.
_SLICE_S = 0.05
#: What redis-py's parser gives for a message that is not a reply.
_PUSHED = object()


class Arrival(NamedTuple):
    """A message that was fetched and not delivered yet."""

    queue: str
    tag: str | None  # None where no acknowledgement is expected
    message: dict[str, Any]


class Channel(redis.Channel):
    """A channel that pops and notes messages in one step, and remembers them over connections."""

    QoS = QoS
    Message = Message

    #: Redis stream (under the key prefix) of what was in a queue and is no message; None = they are
    #: dropped. How many of them are kept, and how many bytes a message may have.
    dead_letter_key: str | None = None
    dead_letter_limit = 1000
    longest_message = 2**26

    from_transport_options: Any = (
        *redis.Channel.from_transport_options,
        *("dead_letter_key", "dead_letter_limit", "longest_message"),
    )

    #: Whether Celery's or kombu's hub drives this channel; otherwise, it is `drain_events`.
    has_hub = False

    _in_poll: Any
    _brpop_sent_at: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._arrivals: deque[Arrival] = deque()
        self._noted_queues: set[str] = set()
        self._remembered: dict[bool, dict[str, Any]] = {}
        self._command_client: Any = None
        self._script = ""
        # What was asked of Redis last.
        self._sent_acks: list[str] = []
        self._sent_queues: list[str] = []
        self._sent_want = 0
        self._discarded = 0
        #: There may be messages, because the last fetch has not emptied the queues, ...
        self._more = True
        #: ... or because Redis says that one of them has changed since.
        self._changed = False
        super().__init__(*args, **kwargs)

    @cached_property
    def custody(self) -> Custody:
        """Where the messages of this channel's broker are kept."""
        keys = Keys(
            prefix=self.global_keyprefix,
            unacked=self.global_keyprefix + self.unacked_key,
            unacked_index=self.global_keyprefix + self.unacked_index_key,
            sep=self.sep,
            priority_steps=tuple(self.priority_steps),
            dead=self.global_keyprefix + self.dead_letter_key if self.dead_letter_key else None,
            dead_limit=self.dead_letter_limit,
            longest=self.longest_message,
        )
        return custody_of(self._connparams(), keys, self.visibility_timeout)

    @property
    def is_lost(self) -> bool:
        """Whether a worker closes this channel to open another one.

        Anybody else closes a channel because it is no longer needed.
        """
        state = sys.modules.get("celery.worker.state")
        if state is None or not self.has_hub:
            return False
        # False means "go on", and 0 is the exit status of a worker that stops.
        return all(
            flag is None or flag is False for flag in (state.should_stop, state.should_terminate)
        )

    @property
    def serves(self) -> bool:
        """Whether this channel consumes with acknowledgements."""
        return bool(self._noted_queues)

    # Consuming.

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Consume from `queue`."""
        self._more = True
        if self.ack_emulation and not no_ack and queue not in self._fanout_queues:
            self._noted_queues.add(queue)
            self.custody.attach(self)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """The next message of `queue`, or None."""
        if no_ack or not self.ack_emulation:
            return super().basic_get(queue, no_ack=no_ack, **kwargs)
        self.custody.attach(self)
        self._noted_queues.add(queue)
        reply = self.custody.broker.fetch_one(queue)
        if queue in self._expires:
            with self.conn_or_acquire() as client:
                self._maybe_update_queues_expire(client, queue)
        for arrival in self._arrived(reply, [queue]):
            message = self.Message(arrival.message, channel=self)
            self.qos.append(message, arrival.tag)
            return message
        return None

    def on_tick(self) -> None:
        """Ask Redis for what there is room for, and tell it what it has to know."""
        if self._closing:
            return
        holdings = self.custody.holdings
        if self.serves and (holdings.returns or holdings.discards):
            self.custody.flush()
        if not self._in_poll and (self._has_errands() or self._is_due()):
            self.connection.cycle._register_BRPOP(self)

    def tell(self, at_once: bool = False) -> None:
        """There is something that Redis has to know; a hub's next tick takes care of it."""
        if at_once or not self.has_hub:
            self.custody.flush()

    def prepare(self, connection: Any) -> None:
        """Make a new connection ready for fetching."""
        # redis-py gives no public access to its parser's handlers; its own cache uses the same.
        connection._parser.set_invalidation_push_handler(self._on_change)
        connection.send_command("SCRIPT", "LOAD", FETCH, check_health=False)
        self._script = bytes_to_str(connection.read_response())
        connection.send_command("CLIENT", "TRACKING", "ON", "NOLOOP", check_health=False)
        try:
            connection.read_response()
        except self.ResponseError as error:
            logger.warning(
                "This broker cannot tell of new messages (%s); an idle worker asks every %s s",
                *(error, self.brpop_timeout),
            )
        self._more = True

    def deliver(self, one: bool = False) -> bool:
        """Hand over what has arrived, or one message of it; whether there was any.

        Stops after a while: a pool that runs its tasks within the delivery, such as solo, must
        let the hub settle one before it starts the next.
        """
        until = monotonic() + _SLICE_S
        delivered = False
        while self._arrivals:
            self._hand_over(self._arrivals.popleft())
            delivered = True
            if one or monotonic() > until:
                break
        return delivered

    def _hand_over(self, arrival: Arrival) -> None:
        if arrival.queue not in self.connection._callbacks:  # cancelled meanwhile
            self._give_back(arrival)
            return
        try:
            self.connection._deliver(arrival.message, arrival.queue)
        except (OSError, MemoryError, redis_py.RedisError):
            raise
        except Exception as error:  # noqa: BLE001
            # Celery takes apart what anybody may have written, and stumbles in a hundred ways. An
            # exception from here would end the worker, or its connection, with each delivery.
            raw = dumps(arrival.message).encode()
            self._discard(arrival.queue, f"{type(error).__name__}: {error}", raw, arrival.tag)

    def discard(self, message: Any, reason: str) -> None:
        """Keep a message that was delivered, and cannot be used, as a dead letter.

        Args:
            message: what the consumer got.
            reason: why, without anything of its contents.
        """
        tag = message.delivery_tag
        queue = self.custody.holdings.held.get(tag, "?")
        self._discard(queue, reason, dumps(message._raw).encode(), tag)

    def _discard(self, queue: str, reason: str, raw: bytes, tag: str | None = None) -> None:
        """Keep what is no message as a dead letter, and say so, without its contents."""
        self.qos._delivered.pop(tag, None)
        self.custody.holdings.discard(queue, reason[:500], raw, tag)
        self._discarded += 1
        if self._discarded <= _TOLD or self._discarded % 1000 == 0:
            logger.critical(
                "What was in the queue %r is no message (%.200s; %d bytes); it is %s. No. %d of "
                "this connection",
                *(queue, reason, len(raw), self._fate_of_discards, self._discarded),
            )
        self.tell()

    @property
    def _fate_of_discards(self) -> str:
        return f"kept in {self.dead_letter_key}" if self.dead_letter_key else "dropped"

    def _has_errands(self) -> bool:
        # Also for what has arrived and is not delivered: the reply brings the hub back soon.
        return bool(self._arrivals or (self.serves and self.custody.holdings.acks))

    def _is_due(self) -> bool:
        if not self._want():
            return False
        if self._more or self._changed:
            return True
        # A safety net under the notices, and for brokers that send none.
        return self._brpop_sent_at is None or (
            monotonic() - self._brpop_sent_at >= self.brpop_timeout
        )

    def _want(self) -> int:
        if self._arrivals or not self.active_queues:
            return 0
        qos = self.qos
        if not qos.can_consume():
            return 0
        if "can_consume" in vars(qos) or not isinstance(qos, QoS):
            return 1  # worker_disable_prefetch has put a rule of its own there
        room = qos.can_consume_max_estimate()
        if room is None:
            # Without a hub nobody has asked for more than one.
            return BATCH if self.has_hub else 1
        return min(room, BATCH)

    # kombu's poller calls the two by these names. No BRPOP is sent: see `scripts.FETCH`.

    def _brpop_start(self, timeout: float | None = None) -> None:
        want = self._want()
        queues = self._queue_cycle.consume(len(self.active_queues)) if want else []
        notes = "".join("1" if queue in self._noted_queues else "0" for queue in queues)
        fair = "1" if type(self._queue_cycle) is round_robin_cycle else "0"
        keys = self.custody.broker.keys.of_fetch(queues)
        connection = self.client.connection
        if want:  # before it is sent, for a notice may come with the reply
            self._changed = self._more = False
        self._sent_acks = self.custody.holdings.take_acks(_ACKS)
        self._sent_queues, self._sent_want = queues, want
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        connection.send_command(
            *("EVALSHA", self._script, len(keys), *keys, want, fair, notes),
            *(*self.custody.broker.keys.limits, *self._sent_acks),
            check_health=False,
        )

    def _brpop_read(self, **options: Any) -> bool:
        self._receive_replies()
        if not self.deliver(one=not self.has_hub):
            raise Empty
        return True

    def _poll_error(self, type: str, **options: Any) -> None:  # noqa: A002  # kombu's name
        if type == "BRPOP":
            self._receive_replies()
        else:
            super()._poll_error(type, **options)

    def _receive_replies(self) -> None:
        connection = self.client.connection
        try:
            while True:
                reply = connection.read_response(push_request=True)
                if reply is not _PUSHED and reply is not None:
                    self._take(reply)
                # What the parser has read ahead, no poller sees.
                if not connection.can_read(timeout=0):
                    return
        except self.ResponseError as error:
            connection.disconnect()
            raise redis_py.ConnectionError(
                f"Redis refuses to hand out messages: {error}"
            ) from error
        except self.connection_errors:
            connection.disconnect()
            raise

    def _take(self, reply: list[Any]) -> None:
        self._in_poll = None
        self._sent_acks = []
        arrivals = self._arrived(reply, self._sent_queues)
        if self._sent_want and len(reply) // 2 >= self._sent_want:
            self._more = True
        self._arrivals.extend(arrivals)
        self._flush_brpop_reauth()

    def _arrived(self, reply: list[Any], queues: list[str]) -> list[Arrival]:
        holdings, delivered = self.custody.holdings, self.qos._delivered
        arrivals = []
        for position, raw in zip(reply[::2], reply[1::2], strict=True):
            queue = queues[(abs(position) - 4) % len(queues)]
            self._queue_cycle.rotate(queue)
            message = self._decode(queue, raw)
            if message is None:
                continue
            if queue not in self._noted_queues:
                arrivals.append(Arrival(queue, None, message))
                continue
            tag = message["properties"]["delivery_tag"]
            if position < 0:
                info = message["properties"].get("delivery_info") or {}
                self.custody.broker.note(
                    tag, raw, info.get("exchange", ""), info.get("routing_key", queue)
                )
            if holdings.admit(tag, queue):
                delivered[tag] = None
                arrivals.append(Arrival(queue, tag, message))
        return arrivals

    def _decode(self, queue: str, raw: bytes) -> dict[str, Any] | None:
        """The message, or None for what is none, which is a dead letter then."""
        if not raw:
            logger.critical(
                "A message in the queue %r is empty or longer than %d bytes; it is %s",
                *(queue, self.longest_message, self._fate_of_discards),
            )
            return None
        try:
            message = read_envelope(raw)
        except Exception as error:  # noqa: BLE001 - the hook's, too, and RecursionError
            self._discard(queue, type(error).__name__, raw)
            return None
        if problem := problem_of(message):
            self._discard(queue, problem, raw)
            return None
        found: dict[str, Any] = message
        return found

    def _give_back(self, arrival: Arrival) -> None:
        if arrival.tag is None:
            self._put(arrival.queue, arrival.message)
            return
        self.qos._delivered.pop(arrival.tag, None)
        self.custody.holdings.give_back(arrival.tag, Place.FRONT)
        self.tell()

    def _on_change(self, notice: Any) -> Any:
        self._changed = True
        return _PUSHED

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """A client for commands and publishing.

        Always the same, because redis-py takes longer to make one than to publish an event.
        """
        if client is None:
            client = self._command_client
            if client is None or client.connection_pool is not self._pool:
                client = self._command_client = self._create_client()
        yield client

    # Ends.

    def _on_connection_disconnect(self, connection: Any) -> None:
        if self._in_poll is connection:
            acks, self._sent_acks = self._sent_acks, []
            self.custody.holdings.put_acks(acks)
        super()._on_connection_disconnect(connection)

    def close(self) -> None:
        """Close the channel; see `QoS.restore_unacked_once` for what becomes of its messages."""
        self._closing = True
        if self._in_poll:
            with suppress(Empty, OSError, *self.connection_errors):
                self._receive_replies()
        self._arrivals.clear()  # known to the QoS as delivered to nobody
        super().close()
        self.custody.detach(self)

    def _connparams(self, asynchronous: bool = False) -> Any:
        # At a lost connection Celery closes a channel twice; the second time kombu 5.7 looks up
        # the server's address in a connection that is already gone, and the AttributeError ends
        # the worker.
        if self.connection is None or self.connection.client is None:
            return dict(self._remembered[asynchronous])
        found: dict[str, Any] = super()._connparams(asynchronous=asynchronous)
        if asynchronous:
            found["protocol"] = 3  # Redis tells of changes on the same connection
        self._remembered[asynchronous] = dict(found)
        return found
