"""One thing that the doctor looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]
_LEVELS: tuple[Level, ...] = ("ok", "warn", "fail")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: `redis`, `tier NAME` or `endpoint NAME`.
        check: what was looked at, in a word or two.
        level: `warn` can lose work or time, `fail` means that a job cannot run.
        text: one line for a person. It can hold a server's own words: escape it.
    """

    subject: str
    check: str
    level: Level
    text: str


def worst(findings: Iterable[Finding]) -> Level:
    """The highest level of all; `ok` when there is none."""
    return max((finding.level for finding in findings), key=_LEVELS.index, default="ok")


def words(error: BaseException) -> str:
    """An exception in one short line."""
    return cut(str(error).strip() or type(error).__name__)


def cut(text: str, limit: int = 160) -> str:
    """`text`, at most `limit` characters of it."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
