"""Loaded by workers with `--task chaos_kind:Extract`: a poisonous document, a clock that jumps.

Copied into the folder of the run as chaos_kind.py: it is no part of this package there.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fanout import ChatRequest
from fanout_tasks.extract import Extract as RealExtract

EXIT_POISON = 86


class Extract(RealExtract):
    """The real kind; a document with the word in it ends its worker."""

    def requests(self, payload: Any) -> Iterable[ChatRequest]:
        """End the process, or do as the real one does."""
        if "CHAOS-POISON" in payload.text:
            os._exit(EXIT_POISON)
        return super().requests(payload)


def _let_clock_jump(path: Path) -> None:
    """Add to `time.time` what the file says, at every moment."""
    with path.open("rb") as file:
        shown = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    real = time.time
    time.time = lambda: real() + struct.unpack("d", shown[:8])[0]


if Path("clock").exists():
    _let_clock_jump(Path("clock"))
