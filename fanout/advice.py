"""What a person can do about the failures of a run, from what was seen of them.

Flat memory for a run of any length: of each kind of failure a few counts, and a bounded number of
the servers' words.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from fanout.failures import ADVICE, Kind
from fanout.wire import Record

#: Different statuses, words and limits remembered of a kind.
_MOST = 50
#: Characters of a server's words in a line of advice.
_WORDS = 120

_OTHER = {
    "input": "what was given cannot be used: mend it and run it again",
    "task": "the task kind has a bug: see the worker's log",
    "cancelled": "the job was cancelled",
}
_STATUS = re.compile(r"HTTP (\d{3})")
_MAX_TOKENS = re.compile(r"max_tokens = (\d+)")
_LIMIT = re.compile(r"there is no larger budget: (.*)")
_DIGITS = re.compile(r"\d+")


@dataclass(slots=True)
class Seen:
    """What was seen of the items that ended with one kind of failure.

    Attributes:
        count: items.
        example: the first one's id and message.
        completion, reasoning: their tokens, over all tries.
        seconds: the longest that one of them was in work.
        statuses: HTTP statuses, as their messages name them.
        budgets: the values of max_tokens at which they ended.
        limits: why there was no larger budget.
        words: their messages, with all numbers made alike.
        finishes: finish reasons.
    """

    count: int = 0
    example: tuple[str, str] = ("", "")
    completion: int = 0
    reasoning: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    budgets: Counter[str] = field(default_factory=Counter)
    limits: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    finishes: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """Take in one record that did not end ok."""
        message = record.error.message if record.error else ""
        if not self.count:
            self.example = record.id, message
        self.count += 1
        self.completion += record.usage.completion
        self.reasoning += record.usage.reasoning
        self.seconds = max(self.seconds, record.timing.total_s or 0.0)
        for counts, pattern in (
            (self.statuses, _STATUS), (self.budgets, _MAX_TOKENS), (self.limits, _LIMIT),
        ):  # fmt: skip
            if found := pattern.search(message):
                _count(counts, found[1])
        _count(self.words, _DIGITS.sub("#", message[:_WORDS]))
        if record.finish_reason:
            _count(self.finishes, record.finish_reason)

    def advice(self, kind: str) -> str:
        """What to do, in one line."""
        if kind in _OTHER:
            return _OTHER[kind]
        match Kind(kind):
            case Kind.TRUNCATED:
                return self._of_truncated()
            case Kind.REASONING:
                return self._of_reasoning()
            case Kind.REQUEST:
                return self._of_request()
            case Kind.SERVER if self.statuses:
                return f"the server answered HTTP {_most(self.statuses)}: look into its log"
            case Kind.SERVER if "web page" in _most(self.words):
                return "what answered is no model server but a web page: check the endpoint's url"
            case Kind.SCHEMA if "there is no line" in _most(self.words):
                return (
                    "the model reported lines that the file does not have: review smaller files, "
                    "or ask a larger model"
                )
            case Kind.EMPTY if self.reasoning:
                return (
                    "the model thought and answered nothing: raise max_tokens, or set "
                    "reasoning_effort = low"
                )
            case known:
                return ADVICE[known]

    def _of_truncated(self) -> str:
        if "finish_reason" in _most(self.words):
            return "the server cut the reply short: try another prompt or a higher temperature"
        if 2 * self.reasoning > self.completion > 0:
            return f"the model spent {self._share()} of its budget on reasoning; {_LOWER}"
        if self.limits:
            return f"the reply does not fit: {_most(self.limits)}; {_SHORTER}"
        if self.budgets:
            return f"cut at max_tokens = {_most(self.budgets)}; raise it, or bound the schema"
        return ADVICE[Kind.TRUNCATED]

    def _of_reasoning(self) -> str:
        share = f"{self._share()} of its" if self.reasoning and self.completion else "its"
        at = f" (max_tokens = {_most(self.budgets)})" if self.budgets else ""
        return f"the model spent {share} budget on reasoning{at}; {_LOWER}"

    def _of_request(self) -> str:
        words = _most(self.words)
        if any(said in words for said in ("context length", "max_model_len", "input tokens")):
            return "the prompt is too long for the model: split the documents, or lower max_tokens"
        match _most(self.statuses):
            case "413":
                return "the request is too large for the server: split the documents"
            case "401" | "403":
                return "the server refuses the key: set the endpoint's api_key"
            case "404":
                return "the server does not know the model or the path: check model and url"
            case "":
                return ADVICE[Kind.REQUEST]
            case status:
                return f"the server refused it with HTTP {status}: {words.partition(': ')[2]}"

    def _share(self) -> str:
        return f"{100 * self.reasoning / self.completion:.0f} %"


_LOWER = "set reasoning_effort = low, or raise max_tokens"
_SHORTER = "split the documents, or ask for less"


def _count(counts: Counter[str], key: str) -> None:
    if key in counts or len(counts) < _MOST:
        counts[key] += 1


def _most(counts: Counter[str]) -> str:
    return counts.most_common(1)[0][0] if counts else ""
