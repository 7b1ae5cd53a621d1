"""Agent sub-tasks in their first form: one request each, its answer as text or by a schema."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fanout import (
    ChatRequest,
    Invalid,
    InvalidReply,
    Message,
    Reply,
    SchemaParam,
    Task,
    Temperature,
)

PROMPT = "Do the task that the user gives. Answer with the result alone, short and complete."


class AgentParams(BaseModel):
    """Parameters of a fan-out; with a `schema` each answer is a JSON object."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    output: SchemaParam | None = Field(default=None, alias="schema")
    prompt: str = PROMPT
    max_tokens: int = Field(1024, ge=1, le=1_000_000)
    temperature: Temperature | None = None
    reasoning_effort: str | None = None


class AgentPayload(BaseModel):
    """One sub-task: the `task`, and `context` that it needs."""

    task: str = Field(min_length=1)
    context: str = ""


class Agent(Task):
    """One request a sub-task; the client joins the answers in the order of the tasks."""

    name = "agent"
    Params = AgentParams
    Payload = AgentPayload

    params: AgentParams

    def __init__(self, params: AgentParams) -> None:
        super().__init__(params)
        self._schema = params.output.compiled() if params.output else None

    @property
    def schema_sha256(self) -> str | None:
        return self._schema.sha256 if self._schema else None

    def requests(self, payload: AgentPayload) -> Iterable[ChatRequest]:
        asked = f"{payload.context}\n\n{payload.task}" if payload.context else payload.task
        yield ChatRequest(
            messages=(
                Message(role="system", content=self.params.prompt),
                Message(role="user", content=asked),
            ),
            max_tokens=self.params.max_tokens,
            schema=self._schema.json_schema if self._schema else None,
            schema_name=self._schema.name if self._schema else "reply",
            temperature=self.params.temperature,
            reasoning_effort=self.params.reasoning_effort,
        )

    def validate(self, reply: Reply, payload: AgentPayload) -> Any:
        if self._schema is None:
            return reply.content.strip()
        try:
            return self._schema.validate_json(reply.content)
        except InvalidReply as error:
            raise Invalid(str(error)) from error
