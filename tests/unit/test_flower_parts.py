"""What Flower is started with, who may reach it, and the metrics of items."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fanout import ConfigError, Settings
from fanout.flower import BASIC_AUTH, check_access, flower_argv, flower_env
from fanout.flower.fields import COLUMNS, FIELDS, NAMES, shown
from fanout.flower.metrics import ItemMetrics


def test_the_broker_stays_off_the_command_line() -> None:
    settings = Settings(redis="valkey://:hunter2@127.0.0.1:7000/2")
    argv = flower_argv(5555)
    assert argv[:4] == [sys.executable, "-P", "-m", "fanout.flower"]
    assert "hunter2" not in " ".join(argv)
    assert flower_env(settings) == {"FANOUT_REDIS": "redis://:hunter2@127.0.0.1:7000/2"}


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_password(address: str) -> None:
    assert check_access(address, {}) is None


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::", "10.0.0.7", "spark", "localhost.evil"])
def test_any_other_address_needs_one(address: str) -> None:
    with pytest.raises(ConfigError, match=BASIC_AUTH):
        check_access(address, {})
    assert check_access(address, {BASIC_AUTH: "me:a:b,c"}) == "me:a:b,c"


@pytest.mark.parametrize("credentials", ["me", "me:", ":secret"])
def test_half_a_password_is_refused(credentials: str) -> None:
    with pytest.raises(ConfigError, match="user:password"):
        check_access("127.0.0.1", {BASIC_AUTH: credentials})


def test_every_column_is_known() -> None:
    celerys = {"name", "state", "received", "worker"}
    assert set(COLUMNS) <= {*NAMES, *celerys}
    assert len(set(COLUMNS)) == len(COLUMNS)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("tokens_in", 12345, "12,345"),
        ("tokens_per_s", 4.04, "4.0"),
        ("ttft_s", 0.3104, "310 ms"),
        ("total_s", 1234.5, "1,234.50 s"),
        ("total_s", "<b>", "<b>"),
        ("item", 7, "7"),
    ],
)
def test_values_are_shown_with_their_units(name: str, value: object, text: str) -> None:
    (field,) = (field for field in FIELDS if field.name == name)
    assert shown(field, value) == text


EVENT = {
    "type": "task-failed",
    "status": "invalid",
    "failure": "truncated",
    "tier": "heavy",
    "tokens_in": 900,
    "tokens_out": 120,
    "tokens_reasoning": 40,
    "tokens_cached": 512,
    "attempts": 2,
    "total_s": 30.0,
    "queued_s": 3.5,
    "permit_s": 0.25,
    "ttft_s": None,
    "tokens_per_s": 4.0,
}


def metrics_of(*events: dict[str, Any]) -> dict[str, float]:
    registry = CollectorRegistry()
    items = ItemMetrics(registry)
    for event in events:
        items.observe(event, "fanout.extract")
    lines = generate_latest(registry).decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def test_an_item_is_counted_once_with_its_figures() -> None:
    found = metrics_of(EVENT, {"type": "task-started", "item": "x"}, {"type": "task-succeeded"})
    where = 'kind="extract"'
    assert found[f'fanout_items_total{{{where},status="invalid",tier="heavy"}}'] == 1
    assert found['fanout_item_failures_total{kind="truncated",task="extract",tier="heavy"}'] == 1
    tokens = {
        direction: found[
            f'fanout_item_tokens_total{{direction="{direction}",{where},tier="heavy"}}'
        ]
        for direction in ("in", "out", "reasoning", "cached")
    }
    assert tokens == {"in": 900, "out": 120, "reasoning": 40, "cached": 512}
    assert found[f'fanout_item_seconds_sum{{{where},tier="heavy"}}'] == 30
    assert found[f'fanout_item_queued_seconds_sum{{{where},tier="heavy"}}'] == 3.5
    assert found[f'fanout_item_permit_seconds_sum{{{where},tier="heavy"}}'] == 0.25
    assert found[f'fanout_item_tokens_per_second_count{{{where},tier="heavy"}}'] == 1
    assert f'fanout_item_ttft_seconds_count{{{where},tier="heavy"}}' not in found
    assert found[f'fanout_item_seconds_bucket{{{where},le="1800.0",tier="heavy"}}'] == 1


@pytest.mark.parametrize(
    "nonsense",
    [
        {"status": "wonderful"},
        {"status": ["ok"]},
        {"failure": {"a": 1}},
        {"failure": "made-up"},
        {"tokens_in": -5},
        {"tokens_in": "many"},
        {"total_s": float("nan")},
        {"total_s": True},
    ],
)
def test_nonsense_in_an_event_breaks_nothing(nonsense: dict[str, Any]) -> None:
    found = metrics_of({**EVENT, **nonsense})
    assert not any("made-up" in name or "wonderful" in name for name in found)
    assert all(value >= 0 for value in found.values())
