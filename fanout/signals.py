"""Handlers of signals, for a while."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handled(
    handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> Iterator[None]:
    """`handler` is called for these signals, and afterwards what was called before.

    Raises:
        ValueError: not in the main thread, which alone may set handlers.
    """
    former = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in former.items():
            # None is one that was not set from Python, and cannot be set from it again.
            signal.signal(number, signal.SIG_DFL if before is None else before)
