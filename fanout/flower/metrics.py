"""Prometheus metrics of items, made of task events and served by Flower's `/metrics`.

Names are `fanout_…`; seconds, tokens and kinds are those of the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flower.events import PrometheusMetrics
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from fanout.failures import Kind
from fanout.flower.fields import number
from fanout.wire import STATUSES

#: Upper bounds of histogram buckets, in seconds.
SECONDS = tuple(
    float(bound)
    for bound in (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800)
)
_TOKENS_PER_S = (0.5, 1, 2, 3, 4, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500)

_DIRECTIONS = {
    "tokens_in": "in",
    "tokens_out": "out",
    "tokens_reasoning": "reasoning",
    "tokens_cached": "cached",
}
# Not a set: what an event holds need not be hashable.
_FAILURES = (*(kind.value for kind in Kind), "input", "task", "cancelled")


class ItemMetrics:
    """Counters and histograms of items, by tier and task kind."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        labels = ("tier", "kind")
        self.items = Counter(
            "fanout_items", "Items that ended, by status.", (*labels, "status"), registry=registry
        )
        self.failures = Counter(
            "fanout_item_failures",
            "Items that ended with a failure, by its kind.",
            ("tier", "task", "kind"),
            registry=registry,
        )
        self.tokens = Counter(
            "fanout_item_tokens",
            "Tokens of items that ended, all attempts included.",
            (*labels, "direction"),
            registry=registry,
        )
        self.attempts = Counter(
            "fanout_item_attempts", "Requests that items took.", labels, registry=registry
        )

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        self.histograms = {
            "total_s": histogram("fanout_item_seconds", "From the start in a worker to the end."),
            "queued_s": histogram(
                "fanout_item_queued_seconds", "From submission to the start in a worker."
            ),
            "permit_s": histogram("fanout_item_permit_seconds", "Waiting for a permit."),
            "ttft_s": histogram("fanout_item_ttft_seconds", "To the first token."),
            "tokens_per_s": histogram(
                "fanout_item_tokens_per_second",
                "Completion tokens of the last attempt over the time it was in flight.",
                _TOKENS_PER_S,
            ),
        }

    def observe(self, event: Mapping[str, Any], task: str) -> None:
        """Count the item that `event` ends; an event without an item's figures is passed over.

        Args:
            event: any task event.
            task: name of the Celery task.
        """
        status = event.get("status")
        if event["type"] not in ("task-succeeded", "task-failed") or status not in STATUSES:
            return
        tier, kind = str(event.get("tier") or ""), task.removeprefix("fanout.")
        self.items.labels(tier, kind, status).inc()
        if event.get("failure") in _FAILURES:
            self.failures.labels(tier, kind, event["failure"]).inc()
        for name, direction in _DIRECTIONS.items():
            self.tokens.labels(tier, kind, direction).inc(_amount(event, name) or 0)
        self.attempts.labels(tier, kind).inc(_amount(event, "attempts") or 0)
        for name, histogram in self.histograms.items():
            if (amount := _amount(event, name)) is not None:
                histogram.labels(tier, kind).observe(amount)


def _amount(event: Mapping[str, Any], name: str) -> float | None:
    # Whoever can write to the broker can write events: a counter must not be made to raise.
    amount = number(event.get(name))
    return amount if amount is not None and amount >= 0 else None


def install() -> None:
    """Have Flower count items along with its own metrics."""
    items = ItemMetrics()
    observe_task = PrometheusMetrics.observe_task

    def observe(self: PrometheusMetrics, worker: str, event: dict[str, Any], task: Any) -> None:
        observe_task(self, worker, event, task)
        items.observe(event, task.name or "")

    PrometheusMetrics.observe_task = observe
