"""What a curve says: the N to use, the peak, the cliff, and the kind of curve in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fanout.sweep.point import KV_FULL, Point

#: Plateaus drift upward under noise: the smallest N within 3 % of the best is as good.
GOOD = 0.97
#: Below this part of the peak a point is past the cliff; above it, it may be noise.
BAD = 0.93

Curve = Literal["cliff", "slots", "compute", "rising", "flat", "failing", "unknown"]


class Analysis(BaseModel):
    """What a sweep found.

    Attributes:
        recommended: the smallest N with at least .97 of the peak's tokens/s; None = nothing worked.
        recommended_tokens_per_s: there.
        peak, peak_tokens_per_s: the N with the most tokens/s.
        cliff: [last good N, first bad N], if throughput falls or requests fail beyond the peak.
        curve: the kind of curve.
        words: the same as sentences.
    """

    model_config = ConfigDict(frozen=True)

    recommended: int | None = None
    recommended_tokens_per_s: float | None = None
    peak: int | None = None
    peak_tokens_per_s: float | None = None
    cliff: tuple[int, int] | None = None
    curve: Curve = "unknown"
    words: tuple[str, ...] = ()


def best_of(points: Sequence[Point]) -> Point | None:
    """The point with the smallest N that gives at least .97 of the most tokens/s."""
    usable = [point for point in points if point.tokens_per_s > 0 and not point.failing]
    if not usable:
        return None
    most = max(point.tokens_per_s for point in usable)
    return min(
        (point for point in usable if point.tokens_per_s >= GOOD * most),
        key=lambda point: point.concurrency,
    )


def analyse(points: Sequence[Point]) -> Analysis:
    """What `points`, in any order, come to."""
    ordered = sorted(points, key=lambda point: point.concurrency)
    best = best_of(ordered)
    if best is None:
        return Analysis(curve="failing" if points else "unknown", words=_nothing(ordered))
    usable = [point for point in ordered if not point.failing]
    peak = max(usable, key=lambda point: point.tokens_per_s)
    cliff = _cliff(ordered, peak)
    curve = _curve(ordered, best, peak, cliff)
    return Analysis(
        recommended=best.concurrency,
        recommended_tokens_per_s=best.tokens_per_s,
        peak=peak.concurrency,
        peak_tokens_per_s=peak.tokens_per_s,
        cliff=(cliff[0].concurrency, cliff[1].concurrency) if cliff else None,
        curve=curve,
        words=tuple(_words(ordered, best, peak, cliff, curve)),
    )


def scaling(points: Sequence[Point], point: Point) -> float | None:
    """Tokens/s of `point` over those of the smallest N measured."""
    first = min(points, key=lambda p: p.concurrency)
    return point.tokens_per_s / first.tokens_per_s if first.tokens_per_s else None


def _cliff(ordered: Sequence[Point], peak: Point) -> tuple[Point, Point] | None:
    last_good, bad = peak, None
    for point in ordered:
        if point.concurrency <= peak.concurrency:
            continue
        if not point.failing and point.tokens_per_s >= BAD * peak.tokens_per_s:
            last_good, bad = point, None  # what fell before it was a bad moment
        elif bad is None:
            bad = point
    return None if bad is None else (last_good, bad)


def _curve(
    ordered: Sequence[Point], best: Point, peak: Point, cliff: tuple[Point, Point] | None
) -> Curve:
    if len(ordered) < 2:
        return "unknown"
    beyond = [p for p in ordered if p.concurrency > best.concurrency and not p.failing]
    level = [p for p in beyond if p.tokens_per_s >= BAD * peak.tokens_per_s]
    # A plateau is wide; a cliff that was looked at closely has good points up to its edge.
    wide = bool(level) and level[-1].concurrency >= 1.5 * best.concurrency
    if cliff and not wide:
        return "cliff"
    if any(p.queued for p in level):
        return "slots"
    if best.concurrency == ordered[0].concurrency:
        return "flat"
    return "rising" if best.concurrency == ordered[-1].concurrency else "compute"


def _words(
    ordered: Sequence[Point],
    best: Point,
    peak: Point,
    cliff: tuple[Point, Point] | None,
    curve: Curve,
) -> list[str]:
    said = {
        "cliff": f"It scales to a cliff: {_growth(ordered, best)}, then it falls.",
        "slots": f"A plateau by {_limit(ordered)}: about {_slots(ordered, best)} run at once, "
        "the rest only queue.",
        "compute": f"Bounded by compute: {_growth(ordered, best)}, and more requests share the "
        "same tokens/s.",
        "rising": f"Still rising at the largest N that was measured: {_growth(ordered, best)}.",
        "flat": "Flat: more requests at once bring nothing.",
        "failing": "Nothing was answered.",
        "unknown": "One point is no curve: measure more Ns.",
    }
    words = [said[curve]]
    if cliff:
        words.append(_cliff_words(*cliff, peak))
    if curve == "cliff" and cliff and best.concurrency == cliff[0].concurrency:
        words.append(
            f"N = {best.concurrency} is the last good one: with longer prompts or replies the "
            "cliff comes earlier."
        )
    return words


def _growth(ordered: Sequence[Point], best: Point) -> str:
    times = scaling(ordered, best)
    if times is None:
        return f"best at N = {best.concurrency}"
    first = ordered[0].concurrency
    return f"{times:.3g} times the tokens/s of N = {first} at N = {best.concurrency}"


def _limit(ordered: Sequence[Point]) -> str:
    full = any(p.queued and p.server and (p.server.kv_max or 0.0) >= KV_FULL for p in ordered)
    return "the KV cache" if full else "max_num_seqs"


def _slots(ordered: Sequence[Point], best: Point) -> int:
    seen = [p.server.running_max for p in ordered if p.server and p.server.running_max and p.queued]
    return round(max(seen)) if seen else best.concurrency


def _cliff_words(good: Point, bad: Point, peak: Point) -> str:
    place = f"Between N = {good.concurrency} and {bad.concurrency}"
    if bad.failing:
        parts = [f"{bad.timeouts} timeouts"] if bad.timeouts else []
        parts += [f"{count} x {kind}" for kind, count in bad.errors.items()]
        return f"{place} requests begin to fail ({', '.join(parts)} of {bad.requests})."
    fall = f"{place} it falls by {1 - bad.tokens_per_s / peak.tokens_per_s:.0%}"
    server = bad.server
    if server is None or server.kv_max is None:
        return f"{fall}; without the server's /metrics it cannot be told why."
    if server.full:
        thrown = f", {server.preemptions} preemptions" if server.preemptions else ""
        return f"{fall}: the KV cache is full ({server.kv_max:.0%}{thrown})."
    return f"{fall}, with {server.kv_max:.0%} of the KV cache used: not memory, but compute."


def _nothing(ordered: Sequence[Point]) -> tuple[str, ...]:
    if not ordered:
        return ("Nothing was measured.",)
    kind, example = next(iter(ordered[0].messages.items()), ("", ""))
    return (f"Nothing was answered: {kind}: {example}" if kind else "Nothing was answered.",)
