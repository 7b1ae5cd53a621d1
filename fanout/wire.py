"""What travels: the job's spec, the item in a message, and the record that ends it.

The record's keys are the columns of every output file; see docs/formats.md.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field

from fanout.failures import Kind

Status = Literal["ok", "invalid", "failed", "skipped", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)


class _Wire(BaseModel):
    # Unknown keys are kept out, not refused: an older worker must read a newer client's items.
    model_config = ConfigDict(extra="ignore", frozen=True)


class JobSpec(_Wire):
    """What all items of a job share; written once, read by every worker.

    Attributes:
        kind: name of the task kind, as registered under the entry point `fanout.tasks`.
        tier: the tier of endpoints that serves it; names the queue `fanout.<tier>`.
        params: the task kind's own parameters, validated by its `Params` model.
        results: also keep each record in Celery's result backend (costs Redis memory).
    """

    kind: str
    tier: str
    params: dict[str, Any] = Field(default_factory=dict)
    results: bool = False


class Item(_Wire):
    """One unit of work in a message.

    Attributes:
        id: the user's id, unique in the job.
        ordinal: position in the job, from 0; its bit in the ledger. None without a job.
        job: the job's id, or None for an item sent by a plain Celery client.
        payload: what the task kind works on.
        submitted_at: Unix time in seconds, to tell how long the item waited in the queue.
        spec: the job's spec inline, only for an item without a job.
    """

    id: str
    payload: Any
    ordinal: int | None = None
    job: str | None = None
    submitted_at: float | None = None
    spec: JobSpec | None = None


class Usage(_Wire):
    """Tokens, summed over all attempts; `cached` is the part of `prompt` read from cache."""

    prompt: int = 0
    completion: int = 0
    reasoning: int = 0
    cached: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt=self.prompt + other.prompt,
            completion=self.completion + other.completion,
            reasoning=self.reasoning + other.reasoning,
            cached=self.cached + other.cached,
        )


class Timing(_Wire):
    """Seconds, unless named otherwise.

    Attributes:
        queued_s: from submission to the start in a worker.
        permit_s: waiting for a permit of the endpoint, over all attempts.
        in_flight_s: within requests, over all attempts; added up where several ran at once.
        ttft_s: to the first token of the last attempt; measured when streaming, else the server's.
        total_s: from the start in a worker to the end.
        tokens_per_s: completion tokens of the last attempt over the time it was in flight.
        finished_at: Unix time at the end.
    """

    queued_s: float | None = None
    permit_s: float | None = None
    in_flight_s: float | None = None
    ttft_s: float | None = None
    total_s: float | None = None
    tokens_per_s: float | None = None
    finished_at: float | None = None


class ErrorInfo(_Wire):
    """Why an item is not ok.

    Attributes:
        kind: a failure kind; `input` for a row or parameters that cannot be used; `task` for a
            bug in a task kind; `cancelled`.
        message: one sentence, in the server's words where it gave any.
        raw: the model's last reply, cut to 16,000 characters.
    """

    kind: Kind | Literal["input", "task", "cancelled"]
    message: str
    raw: str | None = None


class Evidence(_Wire):
    """Where in the document a value stands: code points, end exclusive."""

    path: str
    start: int
    end: int


class Record(_Wire):
    """How one item ended. Every submitted id has exactly one.

    `ordinal` is the item's position in the job's input, from 0; None without a job.
    `attempts` counts requests whose failure said something about the item; `retried` counts by
    kind every request that failed on the way, those that were mended by a retry included.
    """

    id: str
    ordinal: int | None = None
    status: Status
    data: Any = None
    error: ErrorInfo | None = None
    attempts: int = 0
    retried: dict[str, int] = Field(default_factory=dict)
    tier: str | None = None
    endpoint: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    usage: Usage = Field(default_factory=Usage)
    timing: Timing = Field(default_factory=Timing)
    evidence: tuple[Evidence, ...] = ()
    input_sha256: str | None = None
    schema_sha256: str | None = None

    def to_json(self) -> bytes:
        """The record as one line of JSON, without the newline."""
        try:
            return orjson.dumps(self.__dict__, default=_fields_of, option=_JSON_ONLY)
        except orjson.JSONEncodeError:
            pass
        # What a task kind returns may be no JSON; it must not keep its item from ending.
        return _json(self.model_dump(mode="json", fallback=str))


#: Values that pydantic may write otherwise than orjson are left to it, with all the time it takes.
_JSON_ONLY = (
    orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)
#: What a record is made of.
_PARTS = frozenset({Usage, Timing, ErrorInfo, Evidence})


def _fields_of(part: Any) -> dict[str, Any]:
    if type(part) in _PARTS:
        fields: dict[str, Any] = part.__dict__
        return fields
    raise TypeError(type(part))


def sha256_of(value: Any) -> str:
    """Hex SHA-256 of a JSON value in canonical form (sorted keys, no white space)."""
    return hashlib.sha256(canonical(value)).hexdigest()


def canonical(value: Any) -> bytes:
    """A JSON value in canonical form: sorted keys, no white space."""
    return _json(value, orjson.OPT_SORT_KEYS)


def _json(value: Any, option: int | None = None) -> bytes:
    try:
        return orjson.dumps(value, option=option)
    except orjson.JSONEncodeError:
        # Integers over 64 bits; and lone surrogates, which no reader of JSON would take.
        text = json.dumps(
            value, sort_keys=bool(option), separators=(",", ":"), ensure_ascii=False, default=str
        )
        return text.encode("utf-8", "replace")
