"""What the log says of items that end."""

from __future__ import annotations

import asyncio
import logging

import pytest

from fanout import ErrorInfo, Kind, Record, Timing
from fanout_workers import outcomes
from fanout_workers.outcomes import Outcomes

pytestmark = pytest.mark.anyio

OK = Record(id="doc-1", status="ok", data={"private": 1}, timing=Timing(total_s=2.0))
INVALID = Record(
    id="doc-2",
    status="invalid",
    error=ErrorInfo(kind=Kind.SCHEMA, message="private", raw="private"),
)


async def test_items_that_went_wrong_have_a_line_and_all_a_sum(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(outcomes, "EVERY_S", 0.0)
    counted = Outcomes()
    counted.add("j", OK)
    counted.add("j", OK)
    counted.add(None, INVALID)
    assert caplog.messages == ["item 'doc-2' of job None: invalid (schema) in 0.0 s"]
    async with asyncio.timeout(10):
        while len(caplog.messages) < 2:
            await asyncio.sleep(0)
    assert caplog.messages[1] == "items ended in the last 0 s: 2 ok, 1 invalid"
    counted.add("j", OK)  # the next sum begins with it
    async with asyncio.timeout(10):
        while len(caplog.messages) < 3:
            await asyncio.sleep(0)
    assert caplog.messages[2].endswith(": 1 ok")
    assert "private" not in caplog.text


async def test_an_item_that_is_fine_has_a_line_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    Outcomes().add("j", OK)
    assert caplog.messages == ["item 'doc-1' of job j: ok in 2.0 s"]
