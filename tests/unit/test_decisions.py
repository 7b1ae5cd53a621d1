"""The table of decisions."""

from __future__ import annotations

import io
import json

from rich.console import Console

from fanout.cli.decisions import lines_of, table_of
from fanout.store import Decided


def test_the_figures_that_are_there_have_columns() -> None:
    first = Decided(0.0, 20, 16, "ramp", "first step", {"in_flight": 16.0, "kv": 0.25})
    second = Decided(5.0, 20, 20, "hold", "holding [red]", {"in_flight": 20.0})
    console = Console(width=120, record=True, file=io.StringIO(), markup=False)
    console.print(table_of([first, second]))
    head, one, other = console.export_text().splitlines()
    assert head.split() == ["time", "N", "phase", "why", "in", "flight", "kv"]
    assert "16 → 20" in one
    assert one.split()[-2:] == ["16", "0.25"]
    assert "holding [red]" in other


def test_as_json_nothing_is_rounded_or_left_out() -> None:
    one = Decided(5.25, 20, 16, "ramp", "first\u009bstep\n", {"tokens_per_s": 1234.5678}, "host-1")
    (line,) = lines_of([one])
    assert line.isascii()
    assert "\n" not in line
    assert Decided(**json.loads(line)) == one
