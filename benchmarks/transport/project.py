"""The Celery project that the workers of this benchmark run; settings come by environment."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import redis
from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_URL"])
app.conf.update(
    broker_transport=os.environ["BENCH_TRANSPORT"],
    worker_pool="fanout_workers.pool:AsyncPool",
    worker_prefetch_multiplier=1,
    worker_disable_rate_limits=True,
    worker_enable_prefetch_count_reduction=False,
    task_acks_late=True,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": float(os.environ["BENCH_VISIBILITY"]),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
)
done = redis.Redis.from_url(os.environ["BENCH_URL"])


@app.task(name="wait")
async def wait(seconds: float, _padding: str) -> None:
    """Takes its time, like a request."""
    if seconds:
        await asyncio.sleep(seconds)


@app.task(name="mark", bind=True)
async def mark(self: Any, seconds: float, _padding: str) -> None:
    """Notes that it has run, in the broker."""
    done.rpush("done", self.request.id)
