"""Where the requests of a sweep come from: made up, or the user's own task and documents."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pydantic import ValidationError

from fanout import ChatRequest, Invalid, Kind, Reply, Task, UsageError
from fanout.client import Doc, payload_of
from fanout.inputs import BadRow
from fanout.sweep.shape import Prompts

#: What a task kind says of a reply: records completed with it, and why it cannot be used.
Verdict = tuple[int, Kind | None, str]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to send.

    Attributes:
        request: the request.
        judge: says what a reply, or none (None), is worth to the task kind; None without one.
        whole: a typical request; not the shortened first one of a slot.
    """

    request: ChatRequest
    judge: Callable[[Reply | None, Kind | None], Verdict] | None = None
    whole: bool = True


class Source(Protocol):
    """Never runs dry."""

    def ask(self) -> Ask:
        """The next request."""

    def first_ask(self) -> Ask:
        """The first request of a slot that joins others in mid-flight."""

    def probe(self) -> ChatRequest:
        """A request to warm up with."""


class MadeUp:
    """Requests of an exact shape."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts
        self._random = random.Random(0)  # noqa: S311 - no secret

    def ask(self) -> Ask:
        return Ask(self.prompts.request())

    def first_ask(self) -> Ask:
        # Slots that all start at once would end at once, again and again: all of them read their
        # prompts at the same time and none meanwhile. A first reply of any length up to the whole
        # puts each at a random place of its own reply, as it is in steady state.
        tokens = max(1, round(self._random.random() * self.prompts.shape.output_tokens))
        return Ask(self.prompts.request(tokens), whole=False)

    def probe(self) -> ChatRequest:
        return self.prompts.request(min(16, self.prompts.shape.output_tokens))


class Documents:
    """The requests that a task kind makes of a user's documents, again from the first after the
    last.

    Args:
        task: the task kind's instance.
        docs: read as they are needed.

    Attributes:
        repeated: documents were needed more than once: the server's prefix cache knows them.
        skipped: rows that could not be read.
    """

    def __init__(self, task: Task, docs: Iterable[Doc]) -> None:
        self._task = task
        self._docs: Iterator[Doc] = iter(docs)
        self._kept: list[Any] = []
        self._next = 0
        self._asks: list[Ask] = []
        self.repeated = False
        self.skipped = 0

    def ask(self) -> Ask:
        if not self._asks:
            self._asks = list(reversed(_asks_of(self._task, self._payload())))
        return self._asks.pop()

    def first_ask(self) -> Ask:
        return self.ask()

    def probe(self) -> ChatRequest:
        return self.ask().request

    def _payload(self) -> Any:
        for doc in self._docs:
            if isinstance(doc, BadRow):
                self.skipped += 1
                continue
            identity, raw = payload_of(doc, len(self._kept))
            try:
                self._kept.append(self._task.Payload.model_validate(raw))
            except ValidationError as error:
                raise UsageError(f"{identity}: {error}") from None
            return self._kept[-1]
        if not self._kept:
            raise UsageError("the inputs hold no document")
        self.repeated = True
        self._next += 1
        return self._kept[(self._next - 1) % len(self._kept)]


@dataclass(slots=True)
class _Item:
    """Joins the parts of one document: it is one valid record when all of them are."""

    task: Task
    payload: Any
    parts: list[Any] = field(default_factory=list)
    left: int = 0
    good: bool = True

    def judge(self, part: int, reply: Reply | None, failed: Kind | None) -> Verdict:
        self.left -= 1
        unusable, words = failed, ""
        if reply is not None:
            try:
                self.parts[part] = self.task.validate(reply, self.payload)
            except Invalid as error:
                unusable, words = Kind.SCHEMA, str(error)
        self.good = self.good and reply is not None and unusable is None
        if self.left or not self.good:
            return 0, unusable, words
        self.task.reduce(self.parts, self.payload)
        return 1, None, ""


def _asks_of(task: Task, payload: Any) -> Sequence[Ask]:
    requests = tuple(task.requests(payload))
    item = _Item(task, payload, parts=[None] * len(requests), left=len(requests))
    return [Ask(request, partial(item.judge, part)) for part, request in enumerate(requests)]
