"""The fields that a fanout item adds to Celery's task events, and how a person reads them.

Workers send them with `task-succeeded` and `task-failed` (`item` and `job` with `task-started`
too); Flower shows them. Pure data: workers import it without Flower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: How a value is shown: as it is, as a whole number, in seconds, or with one decimal.
Form = Literal["text", "count", "seconds", "rate"]


@dataclass(frozen=True, slots=True)
class ItemField:
    """One field of an event; its name is the record's word for it.

    Attributes:
        name: key in the event and slug of the column.
        label: header of the column, and what the page of one task calls it.
        form: how its values are shown and sorted.
        group: heading on the page of one task.
    """

    name: str
    label: str
    form: Form
    group: str


FIELDS: tuple[ItemField, ...] = (
    ItemField("item", "Item", "text", "Item"),
    ItemField("job", "Job", "text", "Item"),
    ItemField("status", "Status", "text", "Item"),
    ItemField("failure", "Failure", "text", "Item"),
    ItemField("attempts", "Attempts", "count", "Item"),
    ItemField("tier", "Tier", "text", "Model"),
    ItemField("endpoint", "Endpoint", "text", "Model"),
    ItemField("model", "Model", "text", "Model"),
    ItemField("tokens_in", "Tokens in", "count", "Tokens"),
    ItemField("tokens_out", "Tokens out", "count", "Tokens"),
    ItemField("tokens_reasoning", "Reasoning", "count", "Tokens"),
    ItemField("tokens_cached", "Cached", "count", "Tokens"),
    ItemField("tokens_per_s", "Tokens/s", "rate", "Tokens"),
    ItemField("queued_s", "Queued", "seconds", "Time"),
    ItemField("permit_s", "Permit", "seconds", "Time"),
    ItemField("ttft_s", "TTFT", "seconds", "Time"),
    ItemField("total_s", "Total", "seconds", "Time"),
)

NAMES: tuple[str, ...] = tuple(field.name for field in FIELDS)

#: Slugs of the columns that the page of tasks shows, in their order. Arguments and results stay
#: on the page of one task.
COLUMNS: tuple[str, ...] = (
    "item",
    "state",
    "status",
    "failure",
    "attempts",
    "tokens_in",
    "tokens_out",
    "tokens_reasoning",
    "tokens_per_s",
    "queued_s",
    "permit_s",
    "ttft_s",
    "total_s",
    "received",
    "name",
    "endpoint",
    "model",
    "worker",
)


def number(value: object) -> float | None:
    """`value` as a number, or None if it is none; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def shown(field: ItemField, value: object) -> str:
    """`value` as the page of one task shows it; the caller escapes it."""
    amount = number(value)
    if field.form == "text" or amount is None:
        return str(value)
    if field.form == "count":
        return f"{amount:,.0f}"
    if field.form == "rate":
        return f"{amount:,.1f}"
    return f"{amount * 1000:.0f} ms" if amount < 1 else f"{amount:,.2f} s"
