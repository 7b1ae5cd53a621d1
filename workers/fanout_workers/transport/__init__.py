"""Celery's Redis transport, by the batch and without loss.

Usable by any Celery project: `broker_transport = "fanout_workers.transport:Transport"`. Keys and
messages are kombu's own. It needs nothing else of fanout.
"""

from .channel import Channel, QoS
from .poller import Poller, Transport

__all__ = ["Channel", "Poller", "QoS", "Transport"]
