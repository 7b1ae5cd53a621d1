"""Tokens/s over N as a picture, by matplotlib (the extra `plots`)."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any, Literal

from fanout.sweep.analysis import Analysis
from fanout.sweep.record import Sweep

MISSING = "no SVG and no PNG: they need matplotlib: pip install 'fanout-llm[plots]'"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # told apart by colour-blind readers
_MARKERS = ("o", "^", "s", "D")


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def pictures(sweeps: Sequence[Sweep]) -> dict[Literal["svg", "png"], bytes]:
    """The chart in both formats; the same sweeps give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    # Not pyplot: it keeps figures and looks for a display. Text stays text in the SVG.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fanout"}):
        figure = Figure(figsize=(8, 6.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
        drawn = [sweep for sweep in sweeps if sweep.points]
        for number, sweep in enumerate(drawn):
            _curve(above, below, sweep, number)
        _axes(above, below, drawn)
        return {"svg": _saved(figure, "svg"), "png": _saved(figure, "png")}


def _curve(above: Any, below: Any, sweep: Sweep, number: int) -> None:
    points, analysis = sweep.ordered(), sweep.analysis()
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    ns = [p.concurrency for p in points]
    above.plot(
        ns,
        [p.tokens_per_s for p in points],
        color=colour,
        marker=marker,
        label=_name(sweep, analysis),
    )
    if analysis.recommended is not None:
        place = (analysis.recommended, analysis.recommended_tokens_per_s)
        above.plot(*place, marker="*", markersize=17, color=colour, markeredgecolor="white")
    for point in points:
        if analysis.cliff is not None and point.concurrency >= analysis.cliff[1]:
            place = (point.concurrency, point.tokens_per_s)
            above.plot(*place, marker=marker, color="white", markeredgecolor=colour)
    known = [
        (p.concurrency, p.per_sequence_tokens_per_s) for p in points if p.per_sequence_tokens_per_s
    ]
    if known:
        below.plot(*zip(*known, strict=True), color=colour, marker=marker, markersize=4)


def _name(sweep: Sweep, analysis: Analysis) -> str:
    name = f"{sweep.endpoint}: {sweep.model}" if sweep.model else sweep.endpoint
    if analysis.recommended is None:
        return name
    return f"{name}\nN = {analysis.recommended}: {analysis.recommended_tokens_per_s:,.0f} tokens/s"


def _axes(above: Any, below: Any, sweeps: Sequence[Sweep]) -> None:
    above.set_ylabel("tokens/s, all requests")
    above.set_ylim(bottom=0)
    below.set_ylabel("tokens/s each")
    below.set_ylim(bottom=0)
    below.set_xlabel("requests in flight")
    ns = sorted({p.concurrency for sweep in sweeps for p in sweep.points})
    below.set_xscale("log", base=2)
    powers = [2**i for i in range(11) if not ns or ns[0] <= 2**i <= ns[-1] * 1.01]
    below.set_xticks(powers or ns, [str(n) for n in powers or ns])
    below.minorticks_off()
    for axis in (above, below):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if sweeps:
        above.legend(frameon=False, loc="upper left")
    bad = ", hollow: past the cliff" if any(s.analysis().cliff for s in sweeps) else ""
    above.set_title(f"star: the N to use{bad}", fontsize=9, loc="right", color="0.4")


def _saved(figure: Any, form: Literal["svg", "png"]) -> bytes:
    out = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(out, format=form, dpi=150, metadata=metadata)
    return out.getvalue()
