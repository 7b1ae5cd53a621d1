"""The protocol of a task kind: build requests, validate replies, reduce.

A kind is a class, registered under the entry point group `fanout.tasks`:

    class Summarise(Task):
        name = "summarise"

        class Params(BaseModel):
            words: int = 50

        class Payload(BaseModel):
            text: str

        def requests(self, payload):
            ask = f"Summarise in at most {self.params.words} words."
            yield ChatRequest(
                messages=(Message(role="system", content=ask),
                          Message(role="user", content=payload.text)),
                max_tokens=4 * self.params.words,
            )

        def validate(self, reply, payload):
            return reply.content.strip()

One instance serves all items of a job in a worker, so what is expensive (compiling a schema)
belongs into `__init__`. Methods run on the event loop: they compute, they never wait.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from fanout.chat import ChatRequest, Reply
from fanout.wire import Evidence


class NoParams(BaseModel):
    """The parameters of a kind that has none."""

    model_config = ConfigDict(extra="forbid")


class AnyPayload(BaseModel):
    """The payload of a kind that does not say what it takes: whatever comes, as attributes."""

    model_config = ConfigDict(extra="allow")


class Invalid(Exception):
    """A reply that a task kind refuses; the message goes back to the model in a re-ask."""


@dataclass(frozen=True, slots=True)
class Result:
    """What an item comes to: its data, and where in the document it stands."""

    data: Any
    evidence: tuple[Evidence, ...] = ()


class Task(ABC):
    """Base of every task kind.

    Args:
        params: the job's parameters, validated by `Params`.
    """

    #: The kind's name: `fanout.<name>` is its Celery task.
    name: ClassVar[str]
    #: What all items of a job share.
    Params: ClassVar[type[BaseModel]] = NoParams
    #: What one item carries.
    Payload: ClassVar[type[BaseModel]] = AnyPayload

    def __init__(self, params: Any) -> None:
        self.params = params

    @property
    def schema_sha256(self) -> str | None:
        """SHA-256 of the schema that the data follows, if there is one."""
        return None

    @abstractmethod
    def requests(self, payload: Any) -> Iterable[ChatRequest]:
        """The requests of one item, one or more; they run at the same time."""

    @abstractmethod
    def validate(self, reply: Reply, payload: Any) -> Any:
        """The part that one reply gives.

        Raises:
            Invalid: the reply cannot be used; its message is shown to the model.
        """

    def reduce(self, parts: Sequence[Any], payload: Any) -> Result:
        """Join the parts, in the order of `requests`, to what the item comes to."""
        return Result(parts[0] if len(parts) == 1 else list(parts))
