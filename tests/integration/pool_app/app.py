"""The app, its loop hooks and its signal handlers; what happens is noted in Redis."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
from typing import Any

import redis
from celery import Celery, signals

from fanout_workers.pool import on_loop_start, on_loop_stop

URL = os.environ["POOL_APP_URL"]
NOTES = "notes"

app = Celery("pool_app", broker=URL, backend=URL, include=["tests.integration.pool_app.tasks"])
app.conf.update(
    broker_transport=os.environ.get("POOL_APP_TRANSPORT"),
    broker_transport_options={
        "visibility_timeout": float(os.environ.get("POOL_APP_VISIBILITY", "3600")),
        "unacked_restore_interval": 0.3,
        "unacked_restore_throttle": 1,
    },
    worker_pool=os.environ.get("POOL_APP_POOL", "fanout_workers.pool:AsyncPool"),
    worker_prefetch_multiplier=int(os.environ.get("POOL_APP_PREFETCH", "1")),
    worker_soft_shutdown_timeout=float(os.environ.get("POOL_APP_SOFT_SHUTDOWN", "0")),
    worker_enable_prefetch_count_reduction=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    task_acks_late=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)

#: Set by the prerun signal, to be seen by the task and by the postrun signal.
baggage: contextvars.ContextVar[str | None] = contextvars.ContextVar("baggage", default=None)

_client = redis.Redis.from_url(URL)


def note(what: str, task_id: str | None = None, **fields: Any) -> None:
    """Write down that `what` has happened."""
    _client.rpush(NOTES, json.dumps({"what": what, "id": task_id, **fields}))


def note_count(what: str, task_id: str) -> int:
    """How often that has been noted."""
    notes = map(json.loads, _client.lrange(NOTES, 0, -1))
    return sum(one["what"] == what and one["id"] == task_id for one in notes)


class Session:
    """What has to be opened, used and closed on one loop."""

    loop: asyncio.AbstractEventLoop | None = None


@on_loop_start
async def open_session() -> None:
    """The first hook."""
    Session.loop = asyncio.get_running_loop()
    note("session opened")


@on_loop_start
async def maybe_fail() -> None:
    """The second hook, which fails where the test wants it to."""
    if os.environ.get("POOL_APP_FAIL_START"):
        raise OSError("the model server is not there")


@on_loop_stop
async def close_session() -> None:
    """The last to stop."""
    note("session closed", same_loop=Session.loop is asyncio.get_running_loop())


@on_loop_stop
async def fail_to_stop() -> None:
    """The first to stop; its failure must not keep the other from running."""
    note("failing to stop")
    raise OSError("cannot stop")


@signals.task_prerun.connect
def _prerun(task_id: str, task: Any, **_: Any) -> None:
    baggage.set(task_id)
    note("prerun", task_id, request=task.request.id)


@signals.task_postrun.connect
def _postrun(task_id: str, task: Any, state: str | None, **_: Any) -> None:
    note("postrun", task_id, request=task.request.id, state=state, baggage=baggage.get())


@signals.task_success.connect
def _success(sender: Any, result: Any, **_: Any) -> None:
    note("success", sender.request.id)


@signals.task_failure.connect
def _failure(task_id: str, exception: BaseException, **_: Any) -> None:
    note("failure", task_id, error=type(exception).__name__)


@signals.task_retry.connect
def _retry(request: Any, **_: Any) -> None:
    note("retry", request.id)


@signals.task_revoked.connect
def _revoked(request: Any, terminated: bool, **_: Any) -> None:
    note("revoked", request.id, terminated=terminated)


if os.environ.get("POOL_APP_UNHEARD"):
    signals.task_prerun.disconnect(_prerun)
    signals.task_postrun.disconnect(_postrun)
    signals.task_success.disconnect(_success)
