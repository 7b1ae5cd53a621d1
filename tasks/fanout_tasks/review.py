"""Code review in its first form: one request a file, findings with line and severity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fanout import ChatRequest, Invalid, InvalidReply, Message, OutputSchema, Reply, Result, Task

PROMPT = """\
You review one source file for defects: bugs, security holes, data loss, races, resource leaks. \
Each line of the file starts with its number. Report only what is wrong in the code shown, each \
defect once, with the line it stands on. Report nothing about style. If nothing is wrong, give an \
empty list of findings."""


class Finding(BaseModel):
    """One defect in one file; `line` counts from 1."""

    line: int = Field(ge=1, description="number of the line where the defect is")
    severity: Literal["error", "warning", "note"]
    title: str = Field(max_length=120, description="the defect in a few words")
    detail: str = Field(max_length=600, description="why it is wrong and what would mend it")


class Findings(BaseModel):
    """What the model answers for a file."""

    findings: list[Finding] = Field(max_length=20)


class ReviewParams(BaseModel):
    """Parameters of a review; `prompt` replaces the built-in instruction."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = PROMPT
    max_tokens: int = Field(2048, ge=1, le=1_000_000)
    reasoning_effort: str | None = None


class ReviewPayload(BaseModel):
    """One file: `path` as it shall be reported, `text` its content."""

    path: str
    text: str


class Review(Task):
    """One request a file; a finding outside the file is sent back to the model."""

    name = "review"
    Params = ReviewParams
    Payload = ReviewPayload

    params: ReviewParams

    def __init__(self, params: ReviewParams) -> None:
        super().__init__(params)
        self._schema = OutputSchema.from_model(Findings)

    @property
    def schema_sha256(self) -> str | None:
        return self._schema.sha256

    def requests(self, payload: ReviewPayload) -> Iterable[ChatRequest]:
        numbered = "\n".join(
            f"{number}: {line}" for number, line in enumerate(payload.text.splitlines(), 1)
        )
        yield ChatRequest(
            messages=(
                Message(role="system", content=self.params.prompt),
                Message(role="user", content=f"File {payload.path}\n\n{numbered}"),
            ),
            max_tokens=self.params.max_tokens,
            schema=self._schema.json_schema,
            schema_name=self._schema.name,
            temperature=0.0,
            reasoning_effort=self.params.reasoning_effort,
        )

    def validate(self, reply: Reply, payload: ReviewPayload) -> list[dict[str, Any]]:
        try:
            found = Findings.model_validate(self._schema.validate_json(reply.content))
        except InvalidReply as error:
            raise Invalid(str(error)) from error
        lines = max(1, len(payload.text.splitlines()))
        beyond = [finding.line for finding in found.findings if finding.line > lines]
        if beyond:
            raise Invalid(f"the file has {lines} lines, there is no line {beyond[0]}")
        return [finding.model_dump() for finding in found.findings]

    def reduce(self, parts: Sequence[list[dict[str, Any]]], payload: ReviewPayload) -> Result:
        findings = [finding for part in parts for finding in part]
        return Result({"path": payload.path, "findings": findings})
