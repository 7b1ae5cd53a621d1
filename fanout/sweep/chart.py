"""Tokens/s over N as a chart of characters, readable in 80 columns and without colour."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rich.text import Text

from fanout.sweep.analysis import analyse
from fanout.sweep.record import Sweep

_HEIGHT = 14
_MAX_WIDTH = 100
#: Dots of a braille cell, by column and row of the cell.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
#: A mark and a colour for each series: told apart by the mark where there is no colour.
_SERIES = (("●", "cyan"), ("▲", "magenta"), ("■", "yellow"), ("◆", "green"))
_PEAK = "★"


def chart(sweeps: Sequence[Sweep], width: int) -> Text:
    """Curves over a log scale of N; one mark a point, a star at the recommended N.

    Args:
        sweeps: curves to draw together; those without a point are left out.
        width: columns of the terminal.
    """
    drawn = [sweep for sweep in sweeps if any(p.tokens_per_s > 0 for p in sweep.points)]
    if not drawn:
        return Text()
    most = max(p.tokens_per_s for sweep in drawn for p in sweep.points)
    ticks = _ticks(most)
    gutter = max(len(_label(tick)) for tick in ticks) + 1
    canvas = _Canvas(
        columns=min(width, _MAX_WIDTH) - gutter - 2,
        low=min(p.concurrency for sweep in drawn for p in sweep.points),
        high=max(p.concurrency for sweep in drawn for p in sweep.points),
        top=ticks[-1],
    )
    for number, sweep in enumerate(drawn):
        canvas.draw(sweep, *_SERIES[number % len(_SERIES)])
    text = Text("tokens/s", style="dim")
    text.append("\n")
    for row in range(_HEIGHT):
        label = next((_label(t) for t in ticks if canvas.row_of(t) == row), "")
        text.append(f"{label:>{gutter}}", style="dim")
        text.append("┤" if label else "│", style="dim")
        text.append_text(canvas.row(row))
        text.append("\n")
    text.append(" " * gutter + "└" + "─" * canvas.columns + "\n", style="dim")
    text.append(" " * (gutter + 1) + canvas.labels(drawn), style="dim")
    text.append("\n")
    text.append_text(_legend(drawn, gutter + 1))
    return text


class _Canvas:
    """Cells of characters, with finer dots under them for the lines."""

    def __init__(self, columns: int, low: int, high: int, top: float) -> None:
        self.columns = max(10, columns)
        self._low = math.log(low)
        self._span = math.log(high) - self._low or 1.0
        self._top = top
        self._dots: dict[tuple[int, int], int] = {}
        self._styles: dict[tuple[int, int], str] = {}
        self._marks: dict[tuple[int, int], tuple[str, str]] = {}

    def draw(self, sweep: Sweep, mark: str, style: str) -> None:
        points = sweep.ordered()
        recommended = analyse(points).recommended
        places = [(self._x(p.concurrency), self._y(p.tokens_per_s)) for p in points]
        for (x0, y0), (x1, y1) in itertools.pairwise(places):
            steps = max(1, round(max(abs(x1 - x0), abs(y1 - y0)) * 1.5))
            for step in range(steps + 1):
                part = step / steps
                self._dot(x0 + part * (x1 - x0), y0 + part * (y1 - y0), style)
        for point, (x, y) in zip(points, places, strict=True):
            cell = (int(x) // 2, int(y) // 4)
            if point.concurrency == recommended:
                self._marks[cell] = (_PEAK, f"bold {style}")
            elif self._marks.get(cell, ("", ""))[0] != _PEAK:
                self._marks[cell] = (mark, style)

    def row_of(self, value: float) -> int:
        return int(self._y(value)) // 4

    def row(self, row: int) -> Text:
        text = Text()
        for column in range(self.columns):
            cell = (column, row)
            if cell in self._marks:
                text.append(*self._marks[cell])
            elif cell in self._dots:
                text.append(chr(0x2800 + self._dots[cell]), style=self._styles[cell])
            else:
                text.append(" ")
        return text

    def labels(self, sweeps: Sequence[Sweep]) -> str:
        """Ns below the axis, as many as have room; the ends and the recommended ones first."""
        all_ns = sorted({p.concurrency for sweep in sweeps for p in sweep.points})
        chosen = [a.recommended for a in (s.analysis() for s in sweeps) if a.recommended]
        line = [" "] * (self.columns + 4)
        for n in dict.fromkeys([*chosen, all_ns[0], all_ns[-1], *all_ns]):
            word = str(n)
            start = max(0, int(self._x(n)) // 2 - len(word) // 2)
            around = line[max(0, start - 1) : start + len(word) + 1]
            if start + len(word) <= len(line) and set(around) == {" "}:
                line[start : start + len(word)] = word
        return "".join(line).rstrip()

    def _x(self, n: int) -> float:
        return (math.log(n) - self._low) / self._span * (2 * self.columns - 1)

    def _y(self, value: float) -> float:
        return (1 - value / self._top) * (4 * _HEIGHT - 1)

    def _dot(self, x: float, y: float, style: str) -> None:
        column, row = int(x), int(y)
        cell = (column // 2, row // 4)
        self._dots[cell] = self._dots.get(cell, 0) | _DOTS[column % 2][row % 4]
        self._styles[cell] = style


def _ticks(most: float) -> list[float]:
    """0 and up to five round numbers, the last of them at least `most`."""
    step = 10.0 ** math.floor(math.log10(most))
    step = next(s for s in (step / 5, step / 4, step / 2, step, 2 * step) if most / s <= 5)
    return [step * i for i in range(math.ceil(most / step) + 1)]


def _label(tick: float) -> str:
    return f"{tick:,.0f}" if tick >= 100 else f"{tick:.3g}"


def _legend(sweeps: Sequence[Sweep], indent: int) -> Text:
    text = Text(" " * indent)
    for number, sweep in enumerate(sweeps):
        mark, style = _SERIES[number % len(_SERIES)]
        text.append(f"{mark} ", style=style)
        text.append(f"{sweep.endpoint}   ")
    text.append(f"{_PEAK} recommended N   requests in flight (log)", style="dim")
    return text
