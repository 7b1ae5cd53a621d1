"""The transport: which of kombu's channels reads when."""

from __future__ import annotations

from queue import Empty
from typing import Any

from kombu.transport import redis

from .channel import Channel


class Poller(redis.MultiChannelPoller):
    """Polls the channels' connections.

    kombu stops reading a connection whose channel may not consume, because its BRPOP may have
    popped a message. Here nothing is popped but on request, and what is, there is room for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_hub = False

    def on_poll_start(self) -> None:
        """Called before each poll."""
        for channel in list(self._channels):
            channel.has_hub = self.has_hub
            channel.on_tick()
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def on_readable(self, fileno: int) -> Any:
        """Read what has come."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind != "BRPOP":
            return super().on_readable(fileno)
        return channel._brpop_read()

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """Deliver one message, for consumers without a hub; raises Empty if none has come."""
        self._in_protected_read = True
        try:
            self.maybe_refresh_binding_expiry()
            if any(channel.deliver(one=True) for channel in self._channels):
                return
            self.on_poll_start()
            if self._poll_once(timeout):
                return
            self.maybe_restore_messages()
            raise Empty
        finally:
            self._in_protected_read = False
            while self.after_read:
                self.after_read.pop()()

    def _poll_once(self, timeout: float | None) -> bool:
        # No longer than a BRPOP of kombu's would wait: see Channel._is_due.
        longest = min((channel.brpop_timeout for channel in self._channels), default=1)
        events = self.poller.poll(longest if timeout is None else min(timeout, longest))
        if not events:
            self.maybe_check_brpop_health()
        for fileno, event in events or ():
            try:
                if self.handle_event(fileno, event):
                    return True
            except Empty:
                continue
        return False

    def _register(self, channel: Any, client: Any, kind: str) -> None:
        super()._register(channel, client, kind)
        if kind == "BRPOP":
            channel.prepare(client.connection)

    def _update_brpop_polling(self) -> None:
        """Nothing: see the class."""


class Transport(redis.Transport):
    """kombu's Redis transport, by the batch and without loss."""

    Channel = Channel
    cycle: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let Celery's hub drive the channels."""
        self.cycle.has_hub = True
        super().register_with_event_loop(connection, loop)
