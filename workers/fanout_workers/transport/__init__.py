"""Celery's Redis transport, by the batch and without loss.

Usable by any Celery project: `broker_transport = "fanout_workers.transport:Transport"`. Keys and
messages are kombu's own. It needs nothing else of fanout.
"""

from .channel import Channel
from .poller import Poller, Transport
from .qos import QoS

__all__ = ["Channel", "Poller", "QoS", "Transport"]
