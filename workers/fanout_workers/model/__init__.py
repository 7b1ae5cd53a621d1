"""The model client: one chat request over HTTP, every way to fail mapped to a failure kind."""

from fanout_workers.model.client import ModelClient, open_transport
from fanout_workers.model.stream import Meter

__all__ = ["Meter", "ModelClient", "open_transport"]
