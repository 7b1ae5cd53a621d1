"""Items as Celery messages on a Redis list.

The format is kombu's own (virtual transport on Redis, Celery's message protocol 2), so a stock
Celery worker reads what fanout writes and the other way round; a test holds the two together.
Writing it here, instead of calling Celery for each item, is what lets a pipeline carry hundreds
of items in one round trip.
"""

from __future__ import annotations

import base64
import os
import socket
import uuid
from typing import Any

import orjson

from fanout.wire import Item

#: Namespace of the deterministic task ids.
_NAMESPACE = uuid.UUID("6f1b2c2e-6d52-5b7b-9d43-0c3f7a1f0d11")

#: Header of a message that was sent again because the first one seemed to be lost: its item may
#: have ended meanwhile, or may run.
RESUBMITTED = "x-resubmitted"

_ORIGIN = f"{os.getpid()}@{socket.gethostname()}"


def queue_of(tier: str) -> str:
    """Name of the queue that a tier's workers read."""
    return f"fanout.{tier}"


def task_name(kind: str) -> str:
    """Name of the Celery task that runs a task kind."""
    return f"fanout.{kind}"


def task_id(job: str, ordinal: int) -> str:
    """The Celery task id of an item: the same whenever and wherever it is submitted again."""
    return str(uuid.uuid5(_NAMESPACE, f"{job}:{ordinal}"))


def kwargs_of(item: Item) -> dict[str, Any]:
    """The keyword arguments of an item's Celery task."""
    return item.model_dump(exclude_none=True)


def message_of(
    item: Item, kind: str, tier: str, *, results: bool = False, resubmitted: bool = False
) -> bytes:
    """An item of a job as the JSON that a Redis queue of Celery holds.

    Args:
        item: an item with a job and an ordinal.
        kind: the task kind's name.
        tier: names the queue.
        results: whether Celery's result backend shall keep what the task returns.
        resubmitted: marks it with the header `RESUBMITTED`.
    """
    if item.job is None or item.ordinal is None:
        raise ValueError("only an item of a job has a deterministic task id")
    identity = task_id(item.job, item.ordinal)
    body = orjson.dumps(
        [[], kwargs_of(item), {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    )
    queue = queue_of(tier)
    return orjson.dumps(
        {
            "body": base64.b64encode(body).decode("ascii"),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": task_name(kind),
                "id": identity,
                "shadow": None,
                "eta": None,
                "expires": None,
                "group": None,
                "group_index": None,
                "retries": 0,
                "timelimit": [None, None],
                "root_id": identity,
                "parent_id": None,
                "argsrepr": "()",
                # Seen in Flower and in logs: never the document itself.
                "kwargsrepr": repr({"id": item.id, "job": item.job}),
                "origin": _ORIGIN,
                "ignore_result": not results,
                "replaced_task_nesting": 0,
                "stamped_headers": None,
                "stamps": {},
                **({RESUBMITTED: True} if resubmitted else {}),
            },
            "properties": {
                "correlation_id": identity,
                "reply_to": "",
                "delivery_mode": 2,
                # The default exchange: a restored message finds its queue by the routing key.
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )
