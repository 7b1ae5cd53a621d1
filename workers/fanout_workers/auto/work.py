"""The work now against the work of before: what was learnt holds only for the same."""

from __future__ import annotations

from fanout_workers.auto.decision import Remembered
from fanout_workers.auto.window import Window

#: Prompts and replies longer or shorter by this factor are other work.
_OTHER = 1.3


class Work:
    """Notices when requests become longer or shorter.

    Args:
        remembered: what the first of them are compared with.
    """

    def __init__(self, remembered: Remembered | None) -> None:
        self._remembered = remembered
        self._reference: tuple[float, float] | None = None

    def longer(self, window: Window) -> float | None:
        """Once, when the first mean is known: how long the work is, over what is remembered."""
        then = self._remembered
        if then is None or then.mean_tokens is None or not window.lengths.settled:
            return None
        self._remembered = None
        prompt = window.prompt_tokens
        now, before = window.mean_tokens or 0.0, then.mean_tokens
        if prompt is not None and then.prompt_tokens is not None:
            now, before = now + prompt, before + then.prompt_tokens
        return now / before if now > 0 and before > 0 else None

    def changed(self, window: Window, steady: bool) -> bool:
        """Whether it has become other work since the last change.

        Args:
            window: the past.
            steady: whether N has been about the same for longer than a request takes. While it
                rises, most that end are short ones: what they say of the work is no measure.
        """
        if not window.lengths.settled:
            return False
        now = window.prompt_tokens or 1.0, window.mean_tokens or 1.0
        if self._reference is None or not steady:
            self._reference = now
            return False
        ratios = [a / b for a, b in zip(now, self._reference, strict=True)]
        if all(1 / _OTHER < ratio < _OTHER for ratio in ratios):
            return False
        self._reference = now
        return True
