"""What a model server does at each number of running requests, and three servers as published.

The figures are one NVIDIA DGX Spark's (GB10, 128 GB, vLLM 26.03; about 1,500 prompt tokens, 400
output tokens): waves of c equal requests, c x 400 output tokens over the wall time of the wave.
"""

from __future__ import annotations

import json
import math
import tomllib
from bisect import bisect_left
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fanout.errors import UsageError
from fanout.sim.published import TABLES


@dataclass(frozen=True, slots=True)
class Profile:
    """One model on one server.

    Args:
        name: the model's name, as `/v1/models` lists it.
        points: (running requests, output tokens/s of all of them), as a wave of equal requests of
            `prompt_tokens` and `output_tokens` measures it, prefill included. Between two points
            the time of one decoding step is linear in the number running; beyond the last the
            aggregate stays what it was there.
        alias: a short name.
        max_num_seqs: requests that run at once; further ones wait in the server.
        kv_capacity_tokens: tokens, of prompts and answers, that the KV cache holds.
        max_model_len: tokens that prompt and answer of one request may have.
        prefill_tokens_per_s: prompt tokens that the server takes in a second. While it does,
            nothing is decoded.
        queue_limit: requests that may be in the server, running or waiting, as vLLM's
            --max-num-queued-reqs counts; one more is refused. None: any number.
        prompt_tokens: the shape of the requests that gave `points`.
        output_tokens: the same.
        reasoning_tokens: mean length of the chain of thought by reasoning effort; a model that
            does not reason has none.

    Raises:
        UsageError: a figure that no server can have.
    """

    name: str
    points: tuple[tuple[int, float], ...]
    alias: str | None = None
    max_num_seqs: int = 1024
    kv_capacity_tokens: int = 1_000_000
    max_model_len: int = 131_072
    prefill_tokens_per_s: float = math.inf
    queue_limit: int | None = None
    prompt_tokens: int = 1500
    output_tokens: int = 400
    reasoning_tokens: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.points or any(n < 1 or rate <= 0 for n, rate in self.points):
            self._refuse("points are pairs of a number from 1 up and tokens/s above 0")
        counts = [n for n, _ in self.points]
        if counts != sorted(set(counts)):
            self._refuse("points must rise in the number running")
        positive = (self.max_num_seqs, self.max_model_len, self.prefill_tokens_per_s)
        if min(positive) <= 0 or self.prompt_tokens < 0 or self.output_tokens < 2:
            self._refuse("sizes and rates must be above 0, output_tokens above 1")
        if self.kv_capacity_tokens < self.max_model_len:
            self._refuse("kv_capacity_tokens must hold one request of max_model_len")
        for n, rate in self.points:
            if self._decode_s(n) <= 0:
                least = rate * self.prompt_tokens / self.output_tokens
                self._refuse(
                    f"{rate:g} tokens/s at {n} running include the prefill of their prompts: "
                    f"prefill_tokens_per_s must be above {least:.0f}"
                )

    def aggregate(self, running: float) -> float:
        """Output tokens/s of `running` requests of the measured shape, prefill included."""
        return running / self._step_s(running) if running > 0 else 0.0

    def decode_rate(self, running: int) -> float:
        """Output tokens/s of each of `running` requests while no prompt is being taken in."""
        return 1 / (running * self._decode_s(running))

    def _decode_s(self, running: int) -> float:
        # A wave of c requests takes c x output / aggregate seconds: its prefill, and one step for
        # each output token but the first, which prefill gives.
        whole_s = self.output_tokens / self.aggregate(running)
        return (whole_s - self.prompt_tokens / self.prefill_tokens_per_s) / (self.output_tokens - 1)

    def _step_s(self, running: float) -> float:
        """Seconds in which each of `running` requests gains a token."""
        at = bisect_left(self.points, (running, -math.inf))
        if at == 0:
            return self.points[0][0] / self.points[0][1]
        n0, rate0 = self.points[at - 1]
        if at == len(self.points):
            return running / rate0
        n1, rate1 = self.points[at]
        # A step reads the weights once and adds something for each request: linear in requests.
        return n0 / rate0 + (running - n0) / (n1 - n0) * (n1 / rate1 - n0 / rate0)

    def _refuse(self, why: str) -> None:
        raise UsageError(f"profile {self.name}: {why}")


def _published(alias: str, largest: int) -> tuple[tuple[int, float], ...]:
    """The published points up to N = `largest`."""
    rows = TABLES[alias]
    return tuple((row.concurrency, row.tokens_per_s) for row in rows if row.concurrency <= largest)


#: Prefill speed and KV capacity are fitted, not published: the capacity so that the wave of 320
#: comes out (sequences are preempted and taken in again), the speeds above the least that the
#: published aggregates allow (2,607 tokens/s here). Between 256 and the cliff the rate stays.
DENSE = Profile(
    name="nvidia/Llama-3_3-Nemotron-Super-49B-v1_5-NVFP4",
    alias="dense",
    points=_published("dense", 256),
    kv_capacity_tokens=500_000,
    prefill_tokens_per_s=8_000,
)
#: KV capacity: 256 requests of 1,900 tokens were 9 % of it. Past its peak the curve itself falls.
MOE = Profile(
    name="openai/gpt-oss-120b",
    alias="moe",
    points=_published("moe", 384),
    kv_capacity_tokens=5_400_000,
    max_model_len=65_536,
    prefill_tokens_per_s=15_000,
    reasoning_tokens=(("low", 30.0), ("medium", 500.0), ("high", 1500.0)),
)
#: Eight run and the rest wait; at 8 the mean of the published rows from there on.
MAMBA = Profile(
    name="nvidia/NVIDIA-Nemotron-Nano-9B-v2-NVFP4",
    alias="mamba",
    points=((1, 26.19), (2, 51.08), (8, 154.8)),
    max_num_seqs=8,
    kv_capacity_tokens=4_000_000,
    prefill_tokens_per_s=10_000,
)
PROFILES = (DENSE, MOE, MAMBA)


def load_profile(reference: str) -> Profile:
    """The profile of that name or alias, or the one in a .toml or .json file.

    A file holds the fields of `Profile` by their names.

    Raises:
        UsageError: there is no such profile, or the file does not hold one.
    """
    for profile in PROFILES:
        if reference in (profile.name, profile.alias):
            return profile
    path = Path(reference)
    if path.suffix not in (".toml", ".json"):
        known = ", ".join(str(profile.alias) for profile in PROFILES)
        raise UsageError(f"there is no profile {reference!r}: {known}, or a .toml or .json file")
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the profile {path}: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"the profile {path} is not an object")
    return profile_of({"name": path.stem, **found})


def profile_of(data: dict[str, Any]) -> Profile:
    """A profile from its fields as JSON or TOML hold them.

    Raises:
        UsageError: a field is unknown, missing or of another type.
    """
    if unknown := set(data) - {field.name for field in fields(Profile)}:
        raise UsageError(f"a profile has no {', '.join(sorted(unknown))}")
    rest = dict(data)
    try:
        points = tuple((int(n), float(rate)) for n, rate in rest.pop("points"))
        efforts = dict(rest.pop("reasoning_tokens", {}))
        thought = tuple((str(effort), float(mean)) for effort, mean in efforts.items())
        return Profile(points=points, reasoning_tokens=thought, **rest)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"this is no profile: {type(error).__name__}: {error}") from error
