"""Python's garbage collector in a process through which many records go."""

from __future__ import annotations

import gc


def collect_seldom() -> None:
    """Look for garbage cycles less often, and not among what has been imported by now.

    Items and records are hundreds of objects each, which die by themselves. By Python's own numbers
    the collector goes through them, and through all modules, many times a second; in a client that
    was a third of what the reading of a record costs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
