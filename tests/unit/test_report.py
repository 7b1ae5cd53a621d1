"""What a run came to: figures that add up, and advice from what was seen."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fanout import ErrorInfo, Record, Timing, Usage
from fanout.advice import Seen
from fanout.cli.summary import figures, summary
from fanout.failures import ADVICE, Kind
from fanout.report import Report
from fanout.wire import STATUSES


def bad(kind: Any, message: str, **more: Any) -> Record:
    return Record(id="a", status="invalid", error=ErrorInfo(kind=kind, message=message), **more)


def shown(report: Report) -> str:
    # A width of its own: that of `stdout` follows the process that runs the tests.
    console = Console(width=160, file=io.StringIO(), record=True, markup=False, highlight=False)
    console.print(summary(report))
    return console.export_text()


def test_counts_add_up() -> None:
    report = Report()
    report.add([Record(id=str(n), status=status) for n, status in enumerate(STATUSES)] * 3)
    assert report.done == 15
    assert sum(report.by_status().values()) == report.done
    assert not report.clean


def test_mean_in_flight_leaves_back_offs_out() -> None:
    report = Report()
    timing = Timing(total_s=10.0, permit_s=1.0, in_flight_s=4.0, finished_at=110.0)
    report.add([Record(id=str(n), status="ok", attempts=2, timing=timing) for n in range(5)])
    assert report.mean_in_flight == pytest.approx(2.0)


def test_records_of_an_older_version_say_less() -> None:
    report = Report()
    timing = Timing(total_s=10.0, permit_s=1.0, finished_at=110.0)
    report.add([Record(id="a", status="ok", attempts=1, timing=timing)])
    assert report.mean_in_flight == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            bad("truncated", "cut", usage=Usage(completion=100, reasoning=96)),
            "the model spent 96 % of its budget on reasoning; set reasoning_effort = low",
        ),
        (bad("truncated", "the reply was cut at max_tokens = 512"), "max_tokens = 512; raise it"),
        (
            bad(
                "truncated",
                "the reply was cut at max_tokens = 512; there is no larger budget: the model has "
                "room for 8192 tokens, 7680 of them the prompt",
            ),
            "the reply does not fit: the model has room for 8192 tokens",
        ),
        (
            bad("truncated", "the server cut the reply short: finish_reason repetition"),
            "another prompt",
        ),
        (
            bad(
                "reasoning",
                "64 of 64 tokens went into reasoning (max_tokens = 64)",
                usage=Usage(completion=64, reasoning=64),
            ),
            "100 % of its budget on reasoning (max_tokens = 64); set reasoning_effort = low",
        ),
        (
            bad("request", "HTTP 400: This model's maximum context length is 8192 tokens."),
            "split the documents",
        ),
        (bad("request", "HTTP 413: too large"), "too large for the server"),
        (bad("request", "HTTP 401: no"), "api_key"),
        (bad("request", "HTTP 422: Unprocessable"), "with HTTP 422: Unprocessable"),
        (bad("server", "HTTP 502: Bad Gateway"), "HTTP 502"),
        (bad("server", "the reply is a web page, no JSON: <html>"), "check the endpoint's url"),
        (bad("empty", "empty", usage=Usage(completion=9, reasoning=9)), "answered nothing: raise"),
        (
            bad("schema", "the file has 18 lines, there is no line 19"),
            "lines that the file does not have",
        ),
        (bad("input", "no text"), "mend it and run it again"),
    ],
)
def test_advice_uses_what_was_seen(record: Record, words: str) -> None:
    report = Report()
    report.add([record] * 412)
    assert record.error is not None
    kind = str(record.error.kind)
    assert words in figures(report)["advice"][kind]
    line = next(line for line in shown(report).splitlines() if line.startswith("412 "))
    assert line.startswith(f"412 {kind}: ")
    assert words[:40] in line


def test_every_kind_has_advice_without_anything_seen() -> None:
    for kind in Kind:
        assert Seen(count=1).advice(kind)
    assert Seen(count=1).advice(Kind.POISON) == ADVICE[Kind.POISON]


def test_the_most_frequent_counts() -> None:
    seen = Seen()
    for status in (500, 502, 502):
        seen.add(bad("server", f"HTTP {status}: no"))
    assert "HTTP 502" in seen.advice("server")


def test_what_is_seen_takes_no_more_memory_with_more_records() -> None:
    seen = Seen()
    for n in range(2000):
        seen.add(bad("server", f"{chr(65 + n % 26)}{chr(65 + n // 26)} HTTP {n}"))
    assert max(map(len, (seen.words, seen.statuses, seen.budgets))) <= 50
