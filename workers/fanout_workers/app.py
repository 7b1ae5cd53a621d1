"""The Celery app of a worker process: one Celery task a task kind, on the asyncio pool."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from celery import Celery
from celery.exceptions import Reject
from celery.signals import worker_shutting_down

from fanout import Item, Record, Settings, Task, Unavailable
from fanout.queue import queue_of, task_name
from fanout_workers import events
from fanout_workers.attempts import Stopping
from fanout_workers.intake import RESERVE, Intake
from fanout_workers.pool import on_loop_start, on_loop_stop, run_directly
from fanout_workers.runtime import Runtime

#: Seconds before an item goes back into the queue because Redis did not answer.
_AWAY_S = 1.0


def create_app(settings: Settings, tier: str, name: str, kinds: Mapping[str, type[Task]]) -> Celery:
    """The app of a worker that serves `tier`.

    Args:
        settings: Redis and endpoints.
        tier: the tier to serve.
        name: the worker's node name.
        kinds: the task kinds it can run, by name.
    """
    app = Celery(
        "fanout",
        broker=settings.redis_url,
        backend=settings.redis_url,
        events="fanout_workers.dispatcher:Events",
        set_as_current=True,
    )
    app.conf.update(
        broker_transport="fanout_workers.transport:Transport",
        worker_pool="fanout_workers.pool:AsyncPool",
        worker_concurrency=RESERVE,  # to begin with: fanout_workers.intake follows the quota
        worker_prefetch_multiplier=1,
        worker_disable_rate_limits=True,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_prefetch_count_reduction=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_default_queue=queue_of(tier),
        task_acks_late=True,
        task_track_started=False,
        # A name that this worker does not know is some other worker's, or a newer client's.
        task_reject_on_worker_lost=True,
        accept_content=["json"],
        result_expires=86_400,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # An item is handed out again when its worker has been silent for so long; a worker
            # that lives is heard from every third of it, however long a request takes.
            "visibility_timeout": settings.redeliver_after_s,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "health_check_interval": 25,
            "socket_keepalive": True,
        },
    )
    runtime = Runtime(settings, tier, name, kinds)
    intake = Intake(runtime.permits, queue_of(tier), runtime.send_back)
    app.steps["consumer"].add(intake.step())
    on_loop_start(runtime.open)
    on_loop_stop(runtime.close)
    # weak=False: the closure has no other owner.
    worker_shutting_down.connect(lambda **_: runtime.begin_stop(), weak=False)
    for kind in kinds:
        _register(app, runtime, kind)
    return app


def _register(app: Celery, runtime: Runtime, kind: str) -> None:
    @app.task(
        name=task_name(kind),
        bind=True,
        shared=False,  # of this app alone, however many apps a process makes
        Request="fanout_workers.events:ItemRequest",
        typing=False,
    )
    async def run(
        self: Any, params: dict[str, Any] | None = None, **fields: Any
    ) -> dict[str, Any] | None:
        request = self.request
        record = await record_of(request.id, params, fields)
        # Celery writes a text of what it gets for its events, where no reply belongs.
        return None if request.ignore_result else record.model_dump(mode="json")

    async def record_of(
        task_id: str, params: dict[str, Any] | None, fields: dict[str, Any]
    ) -> Record:
        item = Item.model_validate({"id": task_id, **fields})
        try:
            record = await runtime.runner.run(kind, item, params or {}, task_id)
        except Stopping as stopping:
            raise Reject("this worker cannot run it now", requeue=True) from stopping
        except Unavailable as away:
            # Not settled: acknowledged, it would be lost. The pause keeps it from going round.
            await asyncio.sleep(_AWAY_S)
            raise Reject("Redis does not tell what the job is", requeue=True) from away
        events.note(task_id, events.fields_of(record, item.job))
        return record

    async def run_without_result(task_id: str, fields: dict[str, Any]) -> None:
        fields = dict(fields)
        await record_of(task_id, fields.pop("params", None), fields)

    run_directly(run, run_without_result)
