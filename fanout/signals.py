"""Handlers of signals, for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handled(
    handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> Iterator[None]:
    """`handler` is called for these signals, and afterwards what was called before.

    In the main thread, which alone may set handlers and has them called; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in former.items():
            # None is one that was not set from Python, and cannot be set from it again.
            signal.signal(number, signal.SIG_DFL if before is None else before)
