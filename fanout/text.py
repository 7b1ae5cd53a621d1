"""Text from outside, made safe for terminals and logs."""

from __future__ import annotations

import re

# C0 and C1 controls, the ends of lines that Unicode has besides, and the marks that reverse the
# reading direction.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_UNSAFE_IN_LINES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def safe(text: str, *, lines: bool = False) -> str:
    """The text with a replacement character for each one that a terminal or log would obey.

    Args:
        text: from anywhere.
        lines: leave newlines and tabs.
    """
    return (_UNSAFE_IN_LINES if lines else _UNSAFE).sub("\ufffd", text)
