"""Seconds as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`1:02:03`, `2:03` or `0:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
