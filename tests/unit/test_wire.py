"""What travels: JSON that every reader takes, whatever a task kind returns."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, Field

from fanout.failures import Kind
from fanout.wire import ErrorInfo, Evidence, Item, JobSpec, Record, Timing, Usage, sha256_of


@pytest.mark.parametrize(
    ("data", "comes_back"),
    [
        ({"é": [1, None, 2.5, "\u2028"]}, {"é": [1, None, 2.5, "\u2028"]}),
        (10**30, 10**30),
        (float("nan"), None),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ({1: (2, 3)}, {"1": [2, 3]}),
        (Path("a/b"), "a/b"),
        (b"bytes", "bytes"),
    ],
)
def test_whatever_a_kind_returns_can_be_written_and_read(data: Any, comes_back: Any) -> None:
    raw = Record(id="a", status="ok", data=data).to_json()
    assert b"\n" not in raw
    assert Record.model_validate_json(raw).data == comes_back


def test_what_has_no_json_is_written_as_its_text() -> None:
    read = orjson.loads(Record(id="a", status="ok", data=object()).to_json())
    assert read["data"].startswith("<object object")


def test_a_record_comes_back_as_it_was() -> None:
    record = Record(
        id="a",
        status="invalid",
        error=ErrorInfo(kind=Kind.SCHEMA, message="m", raw="r"),
        attempts=2,
        retried={"schema": 2},
        usage=Usage(prompt=1, completion=2, reasoning=3, cached=4),
        timing=Timing(queued_s=0.5),
        evidence=(Evidence(path="/a", start=1, end=2),),
    )
    assert Record.model_validate_json(record.to_json()) == record


def test_keys_of_a_newer_version_are_passed_over() -> None:
    item = Item.model_validate({"id": "a", "payload": {}, "colour": "red"})
    assert not hasattr(item, "colour")
    assert JobSpec.model_validate({"kind": "k", "tier": "t", "new": 1}) == JobSpec(
        kind="k", tier="t"
    )


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert sha256_of({"a": 1, "b": [2]}) == sha256_of({"b": [2], "a": 1})
    assert sha256_of({"a": 1}) != sha256_of({"a": 2})
    assert len({sha256_of(value) for value in (10**30, 10**31, "\ud800", None)}) == 4


def test_usage_adds_up() -> None:
    one = Usage(prompt=1, completion=2, reasoning=3, cached=4)
    assert one + one == Usage(prompt=2, completion=4, reasoning=6, cached=8)


class _Colour(enum.StrEnum):
    RED = "red"


class _Name(str):
    pass


class _Row(BaseModel):
    when: datetime.datetime
    sum_: int = Field(1, serialization_alias="sum")


@dataclasses.dataclass
class _Plain:
    x: int


@pytest.mark.parametrize(
    "data",
    [
        {"a": [1, 2.5, None, True, "é"], "b": {"c": ("x", "y")}},
        {"n": float("nan")},
        {"when": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)},
        {"day": datetime.date(2026, 1, 2), "at": datetime.time(1, 2)},
        {"colour": _Colour.RED, "name": _Name("n"), "id": uuid.UUID(int=7)},
        [_Row(when=datetime.datetime(2026, 1, 2)), _Plain(3)],
        {"set": {1}, "bytes": b"x", "money": decimal.Decimal("1.50")},
        {1: "integer key"},
        2**80,
        Usage(prompt=3),
    ],
)
def test_the_quick_way_of_writing_a_record_writes_what_pydantic_does(data: Any) -> None:
    record = Record(
        id="a",
        status="invalid",
        data=data,
        error=ErrorInfo(kind=Kind.SCHEMA, message="m"),
        retried={"schema": 1},
        usage=Usage(prompt=1),
        timing=Timing(total_s=0.25),
        evidence=(Evidence(path="$", start=0, end=1),),
    )
    written = record.model_dump(mode="json", fallback=str)
    assert json.loads(record.to_json()) == json.loads(json.dumps(written).replace("NaN", "null"))
    assert list(json.loads(record.to_json())) == list(written)
