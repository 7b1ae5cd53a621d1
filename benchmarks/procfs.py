"""CPU seconds and memory of a process and its children, from /proc (Linux)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> Iterator[int]:
    """A process and what it has started, as far as it lives."""
    yield pid
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (thread / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from family(int(child))


def cpu_s(pid: int) -> float:
    """User and system CPU seconds of a process and its children, all threads."""
    total = 0.0
    for member in family(pid):
        try:
            # The name may hold anything: the fields follow its last bracket.
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) * _TICK_S
    return total


def rss_mb(pid: int, field: str = "VmRSS") -> float:
    """Resident memory of a process and its children, added up; `VmHWM` is the most there was."""
    total = 0
    for member in family(pid):
        try:
            status = Path(f"/proc/{member}/status").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))
    return total / 1024
