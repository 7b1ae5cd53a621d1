"""A sweep as a table: for a terminal as wide as it is, and as CSV with everything."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from fanout.cli.console import plain
from fanout.sweep.analysis import Analysis, analyse, scaling
from fanout.sweep.point import Point, Server, Spread
from fanout.sweep.record import Sweep

Cell = Callable[[Point], str]


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: its heading, its cells, and how soon it goes where there is no room (high first).

    One that is empty in all rows is left out.
    """

    heading: str
    cell: Cell
    goes: int = 0


def _columns(points: Sequence[Point]) -> list[_Column]:
    def factor(point: Point) -> str:
        times = scaling(points, point)
        return f"{times:.2f}x" if times is not None else ""

    return [
        _Column("N", lambda p: str(p.concurrency)),
        _Column("tokens/s", lambda p: f"{p.tokens_per_s:,.2f}"),
        _Column("per seq.", lambda p: _number(p.per_sequence_tokens_per_s, 2)),
        _Column("wall s", lambda p: f"{p.wall_s:.1f}"),
        _Column("scaling", factor),
        _Column("valid/s", lambda p: _number(p.valid_per_s, 2)),
        _Column("timeouts", lambda p: str(p.timeouts or "")),
        _Column("errors", _errors, 1),
        _Column("mean s", lambda p: _number(p.mean_latency_s, 1), 2),
        _Column("p50 s", lambda p: _spread(p.latency, "p50", 1), 5),
        _Column("p95 s", lambda p: _spread(p.latency, "p95", 1), 3),
        _Column("p99 s", lambda p: _spread(p.latency, "p99", 1), 9),
        _Column("TTFT p50", lambda p: _spread(p.ttft, "p50", 2), 6),
        _Column("p95", lambda p: _spread(p.ttft, "p95", 2), 7),
        _Column("in flight", lambda p: _number(p.in_flight, 1), 8),
        _Column("waiting", lambda p: _server(p, lambda s: _number(s.waiting_max, 0)), 3),
        _Column("KV", lambda p: _server(p, lambda s: _percent(s.kv_max)), 4),
        _Column("preempt.", lambda p: _server(p, lambda s: str(s.preemptions or "")), 4),
    ]


def table(sweep: Sweep, width: int, *, running: Point | None = None) -> Table:
    """The sweep's rows by N, in at most `width` columns of a terminal.

    Args:
        sweep: what was measured.
        width: columns of the terminal.
        running: the point that is being measured, shown as the last row.
    """
    points = sweep.ordered()
    analysis = analyse(points)
    shown = _that_fit(_columns(points or [Point(concurrency=1)]), points, width)
    found = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for column in shown:
        found.add_column(column.heading, justify="right", no_wrap=True)
    found.add_column("", no_wrap=True)
    for point in points:
        style = "green" if point.concurrency == analysis.recommended else None
        found.add_row(*(c.cell(point) for c in shown), _mark(point, analysis), style=style)
    if running is not None:
        cells = (str(running.concurrency), f"{running.tokens_per_s:,.2f}")
        rest = ("",) * (len(shown) - len(cells))
        found.add_row(*cells, *rest, "…", style="dim")
    return found


def verdict(sweep: Sweep) -> list[Text]:
    """What the sweep found, in lines for a person."""
    analysis = sweep.analysis()
    lines = []
    if analysis.recommended is not None:
        line = Text("N = ", style="bold green")
        line.append(str(analysis.recommended))
        line.append(f"  {analysis.recommended_tokens_per_s:,.1f} tokens/s, ", "not bold default")
        peak = "the peak"
        if analysis.peak != analysis.recommended:
            peak = (
                "the smallest N within 3 % of the peak "
                f"({analysis.peak_tokens_per_s:,.1f} at {analysis.peak})"
            )
        line.append(peak, "not bold default")
        lines.append(line)
    if analysis.cliff:
        lines.append(Text(f"cliff  [{analysis.cliff[0]}, {analysis.cliff[1]}]", style="yellow"))
    lines += [Text(plain(words)) for words in analysis.words]
    lines += [Text(plain(f"note: {note}"), style="yellow") for note in sweep.notes]
    lines += [
        Text(plain(f"{kind}: {words}"), style="red")
        for kind, words in {k: w for p in sweep.points for k, w in p.messages.items()}.items()
    ]
    return lines


_CSV: list[tuple[str, Callable[[Point], object]]] = [
    ("concurrency", lambda p: p.concurrency),
    ("tokens_per_s", lambda p: _rounded(p.tokens_per_s)),
    ("per_sequence_tokens_per_s", lambda p: _rounded(p.per_sequence_tokens_per_s)),
    ("wall_s", lambda p: _rounded(p.wall_s)),
    ("requests", lambda p: p.requests),
    ("tokens", lambda p: p.tokens),
    ("latency_mean_s", lambda p: _rounded(p.mean_latency_s)),
    *(
        (f"latency_{name}_s", lambda p, name=name: _rounded(getattr(p.latency, name, None)))
        for name in ("p50", "p95", "p99", "max")
    ),
    *(
        (f"ttft_{name}_s", lambda p, name=name: _rounded(getattr(p.ttft, name, None)))
        for name in ("mean", "p50", "p95", "p99")
    ),
    ("in_flight", lambda p: _rounded(p.in_flight)),
    ("timeouts", lambda p: p.timeouts),
    ("errors", lambda p: " ".join(f"{kind}={n}" for kind, n in p.errors.items())),
    ("valid", lambda p: p.valid),
    ("valid_per_s", lambda p: _rounded(p.valid_per_s)),
    ("unusable", lambda p: " ".join(f"{kind}={n}" for kind, n in p.unusable.items())),
    ("prompt_tokens", lambda p: _rounded(p.prompt_tokens)),
    ("cached_tokens", lambda p: _rounded(p.cached_tokens)),
    *(
        (name, lambda p, name=name: _rounded(getattr(p.server, name, None)))
        for name in Server.model_fields
    ),
    ("how", lambda p: p.how),
    ("counted_by", lambda p: p.counted_by),
]


def to_csv(sweeps: Sequence[Sweep]) -> bytes:
    """Every figure of every point, one row a point."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["endpoint", "scaling", *(name for name, _ in _CSV)])
    for sweep in sweeps:
        for point in sweep.ordered():
            factor = _rounded(scaling(sweep.points, point))
            writer.writerow([sweep.endpoint, factor, *(value(point) for _, value in _CSV)])
    return out.getvalue().encode()


def _that_fit(columns: list[_Column], points: Sequence[Point], width: int) -> list[_Column]:
    filled = [c for c in columns if not c.goes or any(c.cell(p) for p in points)]
    filled = [c for c in filled if c.heading not in _RARE or any(c.cell(p) for p in points)]
    while sum(_width(c, points) + 2 for c in filled) > width - _MARK:
        last = max(filled, key=lambda c: c.goes)
        if not last.goes:
            break
        filled.remove(last)
    return filled


#: Columns that are shown only where there is something to say.
_RARE = ("valid/s", "timeouts")
#: Columns of a terminal for the mark behind a row.
_MARK = 8


def _width(column: _Column, points: Sequence[Point]) -> int:
    return max(len(column.heading), *(len(column.cell(p)) for p in points), 0)


def _mark(point: Point, analysis: Analysis) -> str:
    if analysis.cliff and point.concurrency >= analysis.cliff[1]:
        return "↓"
    if point.concurrency == analysis.recommended:
        return "← N"
    return "← peak" if point.concurrency == analysis.peak else ""


def _errors(point: Point) -> str:
    return " ".join(f"{count} {kind}" for kind, count in (point.errors | point.unusable).items())


def _server(point: Point, cell: Callable[[Server], str]) -> str:
    return cell(point.server) if point.server else ""


def _number(value: float | None, digits: int) -> str:
    return f"{value:,.{digits}f}" if value is not None else ""


def _spread(spread: Spread | None, name: str, digits: int) -> str:
    return _number(getattr(spread, name, None), digits)


def _percent(value: float | None) -> str:
    return f"{value:.0%}" if value is not None else ""


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if value is not None else None
