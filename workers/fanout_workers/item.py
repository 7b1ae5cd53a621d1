"""One item from its message to its record."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from pydantic import ValidationError

from fanout import (
    ChatRequest,
    ErrorInfo,
    Failure,
    FanoutError,
    Item,
    JobError,
    Record,
    Result,
    Task,
    Timing,
    Unavailable,
    UsageError,
)
from fanout.depth import MAX_DEPTH
from fanout.store import Store
from fanout.wire import sha256_of
from fanout_workers.attempts import Asker, Effort, Stopping, Unwanted
from fanout_workers.jobs import Jobs
from fanout_workers.outcomes import Outcomes

log = logging.getLogger(__name__)


class Released(Exception):
    """The item's job is paused: the item waits in the client's hands, without a record."""


#: Characters of the model's last reply kept in a record.
_RAW_LIMIT = 16_000
#: Seconds between two tries to write a record.
_SETTLE_PAUSE_S = 1.0
#: Seconds between two warnings that records cannot be written, whatever their number.
_WARN_S = 10.0


class ItemRunner:
    """Runs items of one tier: builds their requests, asks, validates, settles.

    Args:
        tier: goes into each record.
        store: where items of a job are settled.
        jobs: the task instances.
        asker: sends requests.
    """

    def __init__(self, tier: str, store: Store, jobs: Jobs, asker: Asker) -> None:
        self._tier = tier
        self._store = store
        self._jobs = jobs
        self._asker = asker
        self._outcomes = Outcomes()
        self._unsettled = 0
        self._warned_at = -math.inf

    async def run(self, kind: str, item: Item, params: dict[str, Any], request_id: str) -> Record:
        """The record that ends the item; settled, if the item belongs to a job.

        Raises:
            Stopping: the worker shuts down; the item is untouched and has to be run again.
            Released: its job is paused, or unknown; the message has served its purpose.
            Unavailable: Redis did not tell what the job is.
        """
        record = await self._record_of(kind, item, params, request_id)
        record = _writable(record)
        if item.job is not None and item.ordinal is not None:
            await self._settle(item.job, item.ordinal, record)
        self._outcomes.add(item.job, record)
        return record

    async def fail(self, item: Item, error: ErrorInfo) -> Record:
        """The record that ends an item which cannot be run; settled as by `run`.

        Raises:
            Stopping: the worker shuts down while Redis is away; the item is untouched.
        """
        effort = Effort(wanted=partial(self._wanted, item))
        record = self._record(item, None, effort, Result(None), error, time.time(), 0.0)
        if item.job is not None and item.ordinal is not None:
            await self._settle(item.job, item.ordinal, record)
        self._outcomes.add(item.job, record)
        return record

    async def has_ended(self, item: Item) -> bool:
        """Whether an item of a job has been settled; raises `Unavailable`."""
        if item.job is None or item.ordinal is None:
            return False
        return await self._store.has_ended(item.job, item.ordinal)

    async def _settle(self, job: str, ordinal: int, record: Record) -> None:
        # The record has to be in Redis before the message is acknowledged. While Redis is away or
        # full the finished answer waits here: asking the model again would cost far more.
        self._unsettled += 1
        try:
            while True:
                try:
                    await self._store.settle(job, ordinal, record)
                    return
                except Unavailable as error:
                    self._warn(error)
                    await self._asker.pause(_SETTLE_PAUSE_S)
        finally:
            self._unsettled -= 1

    def _warn(self, error: Unavailable) -> None:
        # One line for all of them: there may be hundreds, once a second each.
        if time.monotonic() - self._warned_at >= _WARN_S:
            self._warned_at = time.monotonic()
            log.warning("finished items wait for Redis (%d by now): %s", self._unsettled, error)

    async def _record_of(
        self, kind: str, item: Item, params: dict[str, Any], request_id: str
    ) -> Record:
        started = time.time()
        clock = time.monotonic()
        effort = Effort()
        effort.wanted = partial(self._wanted, item, effort)
        task: Task | None = None
        result, error = Result(None), None
        try:
            if item.job is None:
                task = self._jobs.task_for(kind, params)
            else:
                task, _ = await self._jobs.task_of(item.job)
            if not effort.wanted():
                raise Unwanted
            result = await self._until_cancelled(
                item.job, effort, self._result_of(task, item.payload, effort, request_id)
            )
        except Failure as failure:
            error = ErrorInfo(
                kind=failure.kind,
                message=failure.message,
                raw=failure.raw[:_RAW_LIMIT] if failure.raw else None,
            )
        except Unwanted:
            await self._unless_paused(item)
            when = "while this was at the server" if effort.in_flight_s else "before this was sent"
            error = ErrorInfo(kind="cancelled", message=f"the job was cancelled {when}")
        except (Stopping, Unavailable):
            raise
        except JobError as unknown:
            # Nobody could end it. If Redis has lost the job, its client brings job and item again.
            raise Released from unknown
        except FanoutError as problem:
            error = ErrorInfo(kind="input", message=str(problem))
        except Exception as bug:
            # A bug in a task kind ends this item; it must not end the worker or loop for ever.
            log.exception("task kind %s broke on item %s", kind, item.id)
            error = ErrorInfo(kind="task", message=f"task kind {kind}: {bug!r}")
        return self._record(item, task, effort, result, error, started, time.monotonic() - clock)

    def _wanted(self, item: Item, effort: Effort) -> bool:
        return item.job is None or self._jobs.wanted(item.job, fresh=effort.is_fresh())

    async def _unless_paused(self, item: Item) -> None:
        if item.job is None or item.ordinal is None or not self._jobs.wanted(item.job):
            return
        if await self._jobs.released(item.job, item.ordinal):
            raise Released
        raise Stopping  # the job goes on already: back into the queue

    async def _until_cancelled(
        self, job: str | None, effort: Effort, running: Coroutine[Any, Any, Result]
    ) -> Result:
        """What `running` gives; raises `Unwanted` as soon as the job is cancelled."""
        if job is None:
            return await running
        scope = asyncio.timeout(None)
        try:
            async with scope:
                with self._jobs.running(job, scope, effort):
                    return await running
        except TimeoutError:
            if scope.expired():
                raise Unwanted from None
            raise

    async def _result_of(
        self, task: Task, raw_payload: Any, effort: Effort, request_id: str
    ) -> Result:
        try:
            payload = task.Payload.model_validate(raw_payload)
        except ValidationError as error:
            raise UsageError(str(error)) from None
        requests: Sequence[ChatRequest] = tuple(task.requests(payload))
        if len(requests) == 1:
            parts = [await self._asker.ask(task, requests[0], payload, effort, request_id)]
        else:
            parts = await self._ask_all(task, requests, payload, effort, request_id)
        return task.reduce(parts, payload)

    async def _ask_all(
        self,
        task: Task,
        requests: Sequence[ChatRequest],
        payload: Any,
        effort: Effort,
        request_id: str,
    ) -> list[Any]:
        try:
            async with asyncio.TaskGroup() as group:
                asked = [
                    group.create_task(
                        self._asker.ask(task, request, payload, effort, f"{request_id}.{part}")
                    )
                    for part, request in enumerate(requests)
                ]
        except ExceptionGroup as errors:
            # One part that cannot be had ends the item; the group has cancelled the others.
            stopping, _ = errors.split((Stopping, Unwanted))
            raise (stopping or errors).exceptions[0] from None
        return [answer.result() for answer in asked]

    def _record(
        self,
        item: Item,
        task: Task | None,
        effort: Effort,
        result: Result,
        error: ErrorInfo | None,
        started: float,
        total_s: float,
    ) -> Record:
        reply = effort.reply
        speed = None
        if reply and reply.total_s > 0 and reply.usage.completion:
            speed = round(reply.usage.completion / reply.total_s, 2)
        queued = started - item.submitted_at if item.submitted_at else None
        return Record(
            id=item.id,
            ordinal=item.ordinal,
            status=_status_of(error),
            data=result.data,
            error=error,
            attempts=effort.attempts,
            retried=dict(effort.retried),
            tier=self._tier,
            endpoint=effort.endpoint,
            model=reply.model if reply else None,
            finish_reason=reply.finish_reason if reply else None,
            usage=effort.usage,
            timing=Timing(
                queued_s=_seconds(queued),
                permit_s=_seconds(effort.permit_s),
                in_flight_s=_seconds(effort.in_flight_s),
                ttft_s=_seconds(reply.ttft_s) if reply else None,
                total_s=_seconds(total_s),
                tokens_per_s=speed,
                finished_at=round(started + total_s, 3),
            ),
            evidence=result.evidence,
            input_sha256=sha256_of(item.payload),
            schema_sha256=task.schema_sha256 if task else None,
        )


def _writable(record: Record) -> Record:
    """The record, or one without its data if that cannot be written: each item has to end."""
    try:
        raw = record.to_json()
        # Nesting is all that makes JSON which was written unreadable.
        if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
            Record.model_validate_json(raw)
    except ValueError as error:
        problem = ErrorInfo(kind="task", message=f"the data cannot be written: {error}"[:500])
        return record.model_copy(update={"data": None, "status": "failed", "error": problem})
    return record


def _status_of(error: ErrorInfo | None) -> Any:
    if error is None:
        return "ok"
    if error.kind == "cancelled":
        return "cancelled"
    return getattr(error.kind, "ends_as", "failed")


def _seconds(value: float | None) -> float | None:
    # Clocks of two machines can differ: a wait is never negative.
    return None if value is None else round(max(0.0, value), 4)
