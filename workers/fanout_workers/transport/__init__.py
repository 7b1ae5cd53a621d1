"""Celery's Redis transport, by the batch and without loss.

Usable by any Celery project: `broker_transport = "fanout_workers.transport:Transport"`. Keys and
messages are kombu's own. It needs nothing else of fanout.
"""

from .broker import DELIVERY_COUNT, delivery_count
from .channel import Channel
from .poller import Poller, Transport
from .qos import QoS

__all__ = ["DELIVERY_COUNT", "Channel", "Poller", "QoS", "Transport", "delivery_count"]
