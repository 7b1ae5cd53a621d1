"""What travels: JSON that every reader takes, whatever a task kind returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

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
