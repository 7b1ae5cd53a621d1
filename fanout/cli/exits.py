"""Exit codes."""

from enum import IntEnum


class Exit(IntEnum):
    """What the shell sees."""

    CLEAN = 0
    NOT_OK = 1
    USAGE = 2
    INCOMPLETE = 3
    BUDGET = 4
    INTERRUPTED = 130
