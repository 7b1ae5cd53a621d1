"""The servers that the controller is tried on: three published ones, and random ones."""

from __future__ import annotations

import random
from collections.abc import Callable

from fanout.sim.curves import DENSE, MAMBA, MOE, Profile

PUBLISHED = {"dense": DENSE, "moe": MOE, "mamba": MAMBA}
#: An H100 with vLLM 0.24 and a model of 8B, as docs/auto.md has it from 48 running on: prompts of
#: 900 tokens and replies of 330. What is below 48, and for prompts, is not measured but plausible.
H100 = Profile(
    name="h100 8b",
    points=(
        (1, 110.0), (16, 1600.0), (48, 3798.0), (64, 4310.0), (96, 4701.0), (128, 5121.0),
        (192, 5924.0), (256, 5969.0), (384, 6094.0),
    ),
    kv_capacity_tokens=430_000,
    prefill_tokens_per_s=40_000,
    prompt_tokens=900,
    output_tokens=330,
)  # fmt: skip
#: Two processor cores with vLLM 0.32, a model of 25M and all else on them, as docs/auto.md has it.
#: What is below 64, and beyond 384, is not measured but plausible.
CPU = Profile(
    name="cpu 25m",
    points=((1, 65.0), (16, 546.0), (64, 1100.0), (192, 1328.0), (384, 1400.0), (768, 1420.0)),
    kv_capacity_tokens=5_000_000,
    prefill_tokens_per_s=6000,
    prompt_tokens=140,
    output_tokens=330,
)
_GRID = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
_ROOMY = 50_000_000

Points = list[tuple[int, float]]


def _cliff(draw: random.Random, one: float) -> dict[str, object]:
    """A smooth rise to a peak at some N, a fall beyond it, and nothing that warns of it."""
    alpha, peak = draw.uniform(0.55, 0.98), round(16 * 2 ** draw.uniform(0.5, 5))
    points: Points = [(n, one * n**alpha) for n in _GRID if n < 0.9 * peak]
    top = one * peak**alpha
    points += [(peak, top), (round(1.25 * peak), top * draw.uniform(0.75, 0.97))]
    points += [(round(2.5 * peak), top * draw.uniform(0.4, 0.7))]
    return {"points": tuple(points), "kv_capacity_tokens": _ROOMY}


def _slots(draw: random.Random, one: float) -> dict[str, object]:
    """As many as `max_num_seqs` run, and the rest waits."""
    alpha = draw.uniform(0.55, 0.98)
    return {
        "points": tuple((n, one * n**alpha) for n in _GRID),
        "max_num_seqs": round(4 * 2 ** draw.uniform(0, 6.5)),
        "kv_capacity_tokens": _ROOMY,
    }


def _saturated(draw: random.Random, one: float) -> dict[str, object]:
    """Bounded by compute: the rise flattens out slowly or sharply."""
    half, sharp = 16 * 2 ** draw.uniform(0, 4), draw.uniform(1.5, 4)
    return {"points": _flattening(one, half, sharp), "kv_capacity_tokens": _ROOMY}


def _cache(draw: random.Random, one: float) -> dict[str, object]:
    """The KV cache is full before the rise ends."""
    room, sharp = 16 * 2 ** draw.uniform(1, 5), draw.uniform(1.5, 4)
    return {
        "points": _flattening(one, 3 * room, sharp),
        "kv_capacity_tokens": max(140_000, round(1700 * room)),
    }


def _flattening(one: float, half: float, sharp: float) -> tuple[tuple[int, float], ...]:
    return tuple((n, one * n / (1 + (n / half) ** sharp) ** (1 / sharp)) for n in _GRID)


KINDS: tuple[tuple[str, Callable[[random.Random, float], dict[str, object]]], ...] = (
    ("cliff", _cliff),
    ("slots", _slots),
    ("saturated", _saturated),
    ("cache", _cache),
)


def unseen(number: int) -> Profile:
    """A random server; its number is its seed, and `number % 4` says of which kind it is."""
    draw = random.Random(number)
    kind, make = KINDS[number % len(KINDS)]
    shape = make(draw, draw.uniform(4, 15))
    least = max(rate * 1500 / 400 for _, rate in shape["points"])  # type: ignore[attr-defined]
    prefill = least * draw.uniform(2, 8)
    return Profile(name=f"{kind} {number}", prefill_tokens_per_s=prefill, **shape)  # type: ignore[arg-type]
