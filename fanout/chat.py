"""A chat request to a model and its reply, independent of HTTP.

The wire format is OpenAI's chat completions as vLLM serves it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from fanout.wire import Usage


class Message(TypedDict):
    """One turn; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a task kind asks a model.

    Put what is constant over the job first (system message), byte for byte the same: the server's
    prefix cache then computes it once.

    Attributes:
        messages: the conversation so far.
        max_tokens: budget of completion tokens, reasoning included.
        schema: JSON Schema that the reply has to follow, enforced by the server.
        schema_name: name sent with the schema.
        temperature: None leaves it to the server.
        reasoning_effort: None leaves it to the endpoint's setting.
        extra: keys added to the body as they are.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    schema: dict[str, Any] | None = None
    schema_name: str = "reply"
    temperature: float | None = None
    reasoning_effort: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def asking_again(self, last_reply: str, problem: str) -> ChatRequest:
        """This request with its last reply and what is wrong with it appended.

        Build it from the first request each time: a conversation of all failed tries grows, and
        small models repeat what they see.
        """
        return replace(
            self,
            messages=(
                *self.messages,
                Message(role="assistant", content=last_reply),
                Message(
                    role="user",
                    content=f"That reply cannot be used: {problem}\nAnswer again, corrected.",
                ),
            ),
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered.

    Attributes:
        content: the answer; never blank.
        finish_reason: as the server gave it.
        usage: tokens of this request.
        model: model name as the server gave it.
        total_s: seconds from the first byte sent to the last received.
        ttft_s: seconds to the first token; measured when streaming, else the server's own figure.
        reasoning: the chain of thought, if the server shows it.
    """

    content: str
    finish_reason: str | None
    usage: Usage
    model: str | None
    total_s: float
    ttft_s: float | None = None
    reasoning: str | None = None
