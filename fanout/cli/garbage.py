"""Python's garbage collector in a command that moves many records."""

from __future__ import annotations

import gc


def collect_seldom() -> None:
    """Look for garbage cycles less often, and not among what has been imported by now.

    A batch of records is thousands of objects and no cycle: looking for some with the usual
    thresholds was a third of what the reading of a record costs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
