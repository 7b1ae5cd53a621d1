"""Extraction: one document to one JSON object that follows a schema."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from fanout import (
    ChatRequest,
    Invalid,
    InvalidReply,
    Message,
    OutputSchema,
    Reply,
    SchemaParam,
    Task,
    Temperature,
)

DEFAULT_PROMPT = """\
Read the document and extract what the JSON Schema below describes. Use only what the document \
says; where it says nothing, use null, an empty string or an empty list, as the schema allows. \
Answer with the JSON object alone."""


class ExtractParams(BaseModel):
    """Parameters of an extraction.

    Attributes:
        schema: a pydantic model, a JSON Schema, or what `fanout.load_schema` returns.
        prompt: the instruction.
        show_schema: put the JSON Schema behind the prompt. The server enforces it either way; the
            model follows it better when it has read it, and small ones have little room to read.
        max_tokens: completion tokens one reply may take, reasoning included.
        temperature: 0 gives the same answer for the same document, as far as the server can.
        reasoning_effort: low, medium or high; the endpoint's setting when not given.
        fields: keys of a document's other fields that travel in the prompt beside its text.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    output: SchemaParam = Field(alias="schema")
    prompt: str = DEFAULT_PROMPT
    show_schema: bool = True
    max_tokens: int = Field(1024, ge=1, le=1_000_000)
    temperature: Temperature = 0.0
    reasoning_effort: str | None = None
    fields: tuple[str, ...] = ()


class ExtractPayload(BaseModel):
    """One document; `meta` holds its other fields."""

    text: str
    meta: dict[str, Any] = Field(default_factory=dict)


class Extract(Task):
    """Asks for the schema, enforced by the server, and checks what comes."""

    name = "extract"
    Params = ExtractParams
    Payload = ExtractPayload

    params: ExtractParams

    def __init__(self, params: ExtractParams) -> None:
        super().__init__(params)
        self._schema: OutputSchema = params.output.compiled()
        instruction = params.prompt.strip()
        if params.show_schema:
            schema = orjson.dumps(self._schema.json_schema).decode()
            instruction = f"{instruction}\n\nJSON Schema:\n{schema}"
        # The same for every item, byte for byte: the server's prefix cache computes it once.
        self._system = Message(role="system", content=instruction)

    @property
    def schema_sha256(self) -> str | None:
        return self._schema.sha256

    def requests(self, payload: ExtractPayload) -> Iterable[ChatRequest]:
        yield ChatRequest(
            messages=(self._system, Message(role="user", content=self._document(payload))),
            max_tokens=self.params.max_tokens,
            schema=self._schema.json_schema,
            schema_name=self._schema.name,
            temperature=self.params.temperature,
            reasoning_effort=self.params.reasoning_effort,
        )

    def validate(self, reply: Reply, payload: ExtractPayload) -> Any:
        try:
            return self._schema.validate_json(reply.content)
        except InvalidReply as error:
            raise Invalid(str(error)) from error

    def _document(self, payload: ExtractPayload) -> str:
        named = {key: payload.meta[key] for key in self.params.fields if key in payload.meta}
        if not named:
            return payload.text
        head = "\n".join(f"{key}: {value}" for key, value in named.items())
        return f"{head}\n\n{payload.text}"
