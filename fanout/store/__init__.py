"""The job store: who submitted what, how each item ended, and the records until they are read."""

from fanout.store.base import (
    Batch,
    Counts,
    Decided,
    EndpointInfo,
    JobInfo,
    JobState,
    Records,
    Store,
    WorkerInfo,
)
from fanout.store.redis import RedisStore

__all__ = [
    "Batch",
    "Counts",
    "Decided",
    "EndpointInfo",
    "JobInfo",
    "JobState",
    "Records",
    "RedisStore",
    "Store",
    "WorkerInfo",
]
