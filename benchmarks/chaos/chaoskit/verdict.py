"""What the output of a job has to be; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def ids_problems(wanted: Sequence[str], found: Mapping[str, int]) -> tuple[int, int, list[str]]:
    """(lost, twice, in words): each id once, and no other."""
    missing = [name for name in wanted if not found.get(name)]
    again = [name for name, count in found.items() if count > 1]
    strange = sorted(set(found) - set(wanted))
    told = [
        f"{len(names)} {what}: {names[:5]}"
        for what, names in (("lost", missing), ("twice", again), ("unknown", strange))
        if names
    ]
    return len(missing), sum(found[name] - 1 for name in again), told


def record_problems(
    ids: Sequence[str],
    records: Sequence[Mapping[str, Any]],
    allowed: set[str],
    cancelled: bool,
) -> tuple[Counter[str], Counter[str], list[str]]:
    """(statuses, kinds of failure, in words): ok, or failed in a way that the faults explain.

    Args:
        ids: of the job's documents, in their order.
        records: of one job.
        allowed: kinds of failure with which items may end.
        cancelled: whether the job was cancelled.
    """
    statuses = Counter(str(record["status"]) for record in records)
    kinds: Counter[str] = Counter()
    told: list[str] = []
    places = {name: place for place, name in enumerate(ids)}
    for record in records:
        error = record.get("error")
        if record.get("ordinal") not in (None, places.get(record["id"])):
            told.append(f"{record['id']} has the ordinal {record['ordinal']}")
        if record["status"] == "ok":
            if error is not None or not isinstance(record.get("data"), dict):
                told.append(f"{record['id']} is ok without data, or with an error")
            continue
        kind = str(error["kind"]) if error else "none"
        kinds[kind] += 1
        if kind == "cancelled" and not cancelled:
            told.append(f"{record['id']} is cancelled, and nobody has cancelled its job")
        elif kind not in allowed:
            told.append(f"{record['id']} is {record['status']} ({kind}): {error}"[:300])
    return statuses, kinds, told[:5] + ([f"and {len(told) - 5} more"] if len(told) > 5 else [])
