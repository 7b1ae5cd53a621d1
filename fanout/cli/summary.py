"""The report of a run as a person sees it, and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fanout.cli.console import plain
from fanout.cli.live import duration
from fanout.report import Report

_COLOUR = {"ok": "green", "skipped": "yellow", "cancelled": "yellow"}


def figures(report: Report) -> dict[str, Any]:
    """The report as JSON: counts by status, rates per second, seconds, failures by kind."""
    p50, p95 = report.latency.percentile(50), report.latency.percentile(95)
    return {
        "items": report.done,
        "by_status": report.by_status(),
        "failures": dict(report.failures),
        "advice": {kind: seen.advice(kind) for kind, seen in report.seen.items()},
        "mended": dict(report.mended),
        "seconds": round(report.seconds, 2),
        "records_per_s": round(report.records_per_s, 3),
        "tokens_per_s": round(report.tokens_per_s, 1),
        "prompt_tokens": report.prompt_tokens,
        "completion_tokens": report.completion_tokens,
        "latency_p50_s": round(p50, 3) if p50 is not None else None,
        "latency_p95_s": round(p95, 3) if p95 is not None else None,
        "mean_in_flight": round(report.mean_in_flight, 2),
        "slowest": [
            {"id": item, "seconds": round(s, 3)} for s, item in sorted(report.slowest, reverse=True)
        ],
    }


def summary(report: Report) -> RenderableType:
    """Counts, rates, latencies and the slowest items; then each kind of failure with advice."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column()
    table.add_row("items", _counts(report))
    table.add_row(
        "speed",
        f"{report.tokens_per_s:.1f} tokens/s   {report.records_per_s:.2f} records/s   "
        f"in {duration(report.seconds)}",
    )
    table.add_row("in flight", f"{report.mean_in_flight:.1f} on average")
    table.add_row("latency", _latency(report))
    table.add_row("tokens", f"{report.prompt_tokens:,} in   {report.completion_tokens:,} out")
    if report.slowest:
        slowest = sorted(report.slowest, reverse=True)
        table.add_row("slowest", plain("   ".join(f"{item} {s:.1f} s" for s, item in slowest), 100))
    if report.mended:
        mended = "   ".join(f"{count} {kind}" for kind, count in report.mended.most_common())
        table.add_row("mended", Text(f"{mended}   (answered after another try)", style="dim"))
    return Group(table, *(_failure(report, kind, n) for kind, n in report.failures.most_common()))


def _counts(report: Report) -> Text:
    text = Text(f"{report.done}")
    for status, count in report.by_status().items():
        text.append("   ")
        text.append(f"{count} {status}", style=_COLOUR.get(status, "red"))
    return text


def _latency(report: Report) -> str:
    p50, p95 = report.latency.percentile(50), report.latency.percentile(95)
    if p50 is None or p95 is None:
        return "–"
    return f"p50 {p50:.1f} s   p95 {p95:.1f} s"


def _failure(report: Report, kind: str, count: int) -> Text:
    seen = report.seen[kind]
    item, message = seen.example
    text = Text(f"\n{count} {kind}", style="red")
    text.append(f": {plain(seen.advice(kind))}", style="default")
    example = message if message.startswith(item) else f"{item}: {message}"
    text.append(f"\n   e.g. {plain(example, 240)}", style="dim")
    return text
