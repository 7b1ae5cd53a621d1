"""The Celery app of a worker process: one Celery task a task kind, on the asyncio pool."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject
from celery.signals import worker_shutting_down
from pydantic import ValidationError

from fanout import Item, Settings, Task, Unavailable, UsageError
from fanout.keys import DEAD_LETTERS
from fanout.queue import queue_of, task_name
from fanout.wire import ErrorInfo, Record
from fanout_workers import events
from fanout_workers.attempts import Stopping
from fanout_workers.consumer import KIND, UNKNOWN_KIND
from fanout_workers.delivery import Deliveries, Delivery
from fanout_workers.intake import RESERVE, Intake
from fanout_workers.item import Released
from fanout_workers.liveness import Liveness
from fanout_workers.parting import Parting, parting_from
from fanout_workers.pool import on_loop_start, on_loop_stop, run_directly
from fanout_workers.quarantine import Quarantine
from fanout_workers.runtime import Runtime

#: Seconds before an item goes back into the queue because Redis did not answer.
_AWAY_S = 1.0
#: Looks for what silent workers have left, in the time after which it is handed out again.
_LOOKS = 10
#: One more than the largest ordinal: the bitmap of a job's ended items is 32 MB at most.
_MOST_ITEMS = 2**28


def create_app(
    settings: Settings,
    tier: str,
    name: str,
    kinds: Mapping[str, type[Task]],
    command: Sequence[str] = (),
) -> Celery:
    """The app of a worker that serves `tier`.

    Args:
        settings: Redis and endpoints.
        tier: the tier to serve.
        name: the worker's node name.
        kinds: the task kinds it can run, by name.
        command: starts a quarantine for items that may have ended their worker; empty = they run
            as all others do.
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
        worker_consumer="fanout_workers.consumer:Consumer",
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
        # Redis may be full, or a replica for a while: a worker waits for the end of it.
        broker_channel_error_retry=True,
        broker_transport_options={
            # An item is handed out again when its worker has been silent for so long; a worker
            # that lives is heard from every third of it, however long a request takes.
            "visibility_timeout": settings.redeliver_after_s,
            "unacked_restore_interval": settings.redeliver_after_s / _LOOKS,
            "unacked_restore_throttle": 1,
            "dead_letter_key": DEAD_LETTERS,
            "health_check_interval": 25,
            "socket_keepalive": True,
        },
    )
    host = _Host(Runtime(settings, tier, name, kinds), command, parting_from(settings.redis_url))
    intake = Intake(host.runtime.permits, queue_of(tier), host.runtime.send_back)
    liveness = Liveness(intake, host.begin_stop, settings.stuck_after_s)
    for step in (intake.step(), liveness.step()):
        app.steps["consumer"].add(step)
    for start, stop in ((host.open, host.close), (liveness.open, liveness.close)):
        on_loop_start(start)
        on_loop_stop(stop)
    # weak=False: the closure has no other owner.
    worker_shutting_down.connect(lambda **_: host.begin_stop(), weak=False)
    for kind in (*kinds, None):
        _register(app, host, kind)
    return app


class _Host:
    """What runs the items, from the start of the event loop to its end."""

    def __init__(self, runtime: Runtime, command: Sequence[str], parting: Parting) -> None:
        self.runtime = runtime
        self._parting = parting
        self._command = command
        self._loop: asyncio.AbstractEventLoop | None = None
        self._quarantine: Quarantine | None = None
        self._deliveries: Deliveries | None = None

    async def open(self) -> None:
        await self.runtime.open()
        self._loop = asyncio.get_running_loop()
        if self._command:
            self._quarantine = Quarantine(self._command)
        self._deliveries = Deliveries(self.runtime.runner, self._quarantine)

    async def close(self) -> None:
        if self._quarantine is not None:
            await self._quarantine.aclose()
        await self.runtime.close()

    def begin_stop(self) -> None:
        """Let what is in flight finish, and send the rest back; callable from any thread."""
        self._parting.begin()
        self.runtime.begin_stop()
        if self._quarantine is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._quarantine.begin_stop)

    async def run(
        self,
        kind: str,
        params: dict[str, Any],
        fields: dict[str, Any],
        task_id: str,
        headers: Mapping[str, Any],
    ) -> Record | None:
        """The record of the item in a message; None if it had ended before."""
        if self._deliveries is None:
            raise RuntimeError("the worker is not open")
        try:
            item = _item_of(task_id, fields)
        except UsageError as error:
            return await self._refused(fields, task_id, error)
        return await self._deliveries.run(kind, item, params, task_id, Delivery.of(headers))

    async def _refused(
        self, fields: dict[str, Any], task_id: str, error: UsageError
    ) -> Record | None:
        """End an item that cannot be read; raises the error where it is none of a job."""
        known = {name: fields.get(name) for name in ("job", "ordinal")}
        try:
            item = _item_of(task_id, {**known, "id": str(fields.get("id", task_id))[:200],
                                      "payload": None})  # fmt: skip
        except UsageError:
            item = None
        if item is None or item.job is None:
            raise error
        return await self.runtime.runner.fail(item, ErrorInfo(kind="input", message=str(error)))


def _item_of(task_id: str, fields: dict[str, Any]) -> Item:
    """The item in a message's keyword arguments; raises UsageError, without a word of them."""
    try:
        item = Item.model_validate({"id": task_id, **fields})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"the message holds no item: {place}: {first['msg']}") from None
    if item.ordinal is not None and not 0 <= item.ordinal < _MOST_ITEMS:
        raise UsageError(f"the message holds no item: no job has an ordinal {item.ordinal}")
    return item


def _register(app: Celery, host: _Host, kind: str | None) -> None:
    @app.task(
        name=task_name(kind) if kind else UNKNOWN_KIND,
        bind=True,
        shared=False,  # of this app alone, however many apps a process makes
        Request="fanout_workers.events:ItemRequest",
        typing=False,
    )
    async def run(
        self: Any, params: dict[str, Any] | None = None, **fields: Any
    ) -> dict[str, Any] | None:
        request = self.request
        record = await record_of(request.id, params, fields, vars(request))
        if request.ignore_result:
            # Celery writes a text of what it gets for its events, where no reply belongs.
            return None
        if record is None:
            raise Ignore("it ends elsewhere, and so does its result")
        return record.model_dump(mode="json")

    async def record_of(
        task_id: str,
        params: dict[str, Any] | None,
        fields: dict[str, Any],
        headers: Mapping[str, Any],
    ) -> Record | None:
        try:
            record = await host.run(
                kind or str(headers.get(KIND)), params or {}, fields, task_id, headers
            )
        except Released:
            return None  # not settled: whoever goes on with the job submits it anew
        except Stopping as stopping:
            raise Reject("this worker cannot run it now", requeue=True) from stopping
        except Unavailable as away:
            # Not settled: acknowledged, it would be lost. The pause keeps it from going round.
            await asyncio.sleep(_AWAY_S)
            raise Reject("Redis does not tell what the job is", requeue=True) from away
        if record is not None:
            events.note(task_id, events.fields_of(record, fields.get("job")))
        return record

    async def run_without_result(
        task_id: str, fields: dict[str, Any], headers: Mapping[str, Any]
    ) -> None:
        fields = dict(fields)
        await record_of(task_id, fields.pop("params", None), fields, headers)

    run_directly(run, run_without_result)
