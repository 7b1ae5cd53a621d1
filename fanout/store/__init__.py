"""The job store: who submitted what, how each item ended, and the records until they are read."""

from fanout.store.base import (
    Batch,
    Checkpoint,
    Counts,
    Decided,
    EndpointInfo,
    Forgotten,
    JobInfo,
    JobState,
    Pulse,
    Records,
    Restored,
    Store,
    WorkerInfo,
)
from fanout.store.redis import RedisStore

__all__ = [
    "Batch",
    "Checkpoint",
    "Counts",
    "Decided",
    "EndpointInfo",
    "Forgotten",
    "JobInfo",
    "JobState",
    "Pulse",
    "Records",
    "RedisStore",
    "Restored",
    "Store",
    "WorkerInfo",
]
