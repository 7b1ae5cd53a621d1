"""What a model server's /metrics say of its load: vLLM's names and llama.cpp's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

# Sample names; the first that is there counts. vLLM's counters have had `_total` since 0.8.
_RUNNING = ("vllm:num_requests_running", "llamacpp:requests_processing")
_WAITING = ("vllm:num_requests_waiting", "llamacpp:requests_deferred")
_KV = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "llamacpp:kv_cache_usage_ratio")
_PREEMPTIONS = ("vllm:num_preemptions_total",)
_GENERATED = ("vllm:generation_tokens_total",)
_PROMPTS = ("vllm:prompt_tokens_total",)
_KNOWN = frozenset((*_RUNNING, *_WAITING, *_KV, *_PREEMPTIONS, *_GENERATED, *_PROMPTS))
_PREFIXES = ("vllm:", "llamacpp:")


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """One reading; None = the server does not say.

    Attributes:
        running, waiting: requests, over all engines.
        kv: part of the KV cache in use, 0 to 1, of the fullest engine.
        preemptions: since the server started.
        generated: completion tokens since the server started, counted as they are made.
        prompts: prompt tokens taken in since the server started.
    """

    running: float | None = None
    waiting: float | None = None
    kv: float | None = None
    preemptions: float | None = None
    generated: float | None = None
    prompts: float | None = None


def read_server_metrics(text: str) -> ServerLoad | None:
    """The load in Prometheus' text format, or None if it is not a model server's.

    Only the lines that are needed are looked into: vLLM's page has more than a thousand.
    """
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        if not line.startswith(_PREFIXES):
            continue
        name, _, rest = line.partition("{")
        if rest:
            # A label's value may hold anything but a bare quote: the last brace ends them.
            value = rest.rpartition("}")[2]
        else:
            name, _, value = line.partition(" ")
        if name in _KNOWN:
            with suppress(ValueError, IndexError):  # a line that is cut
                number = float(value.split()[0])
                if math.isfinite(number):
                    found.setdefault(name, []).append(number)
    if not found:
        return None
    return ServerLoad(
        running=_first(found, _RUNNING, sum),
        waiting=_first(found, _WAITING, sum),
        kv=_first(found, _KV, max),
        preemptions=_first(found, _PREEMPTIONS, sum),
        generated=_first(found, _GENERATED, sum),
        prompts=_first(found, _PROMPTS, sum),
    )


def _first(
    found: dict[str, list[float]], names: tuple[str, ...], join: Callable[[Iterable[float]], float]
) -> float | None:
    return next((float(join(found[name])) for name in names if name in found), None)
