"""What a sweep sends, from the command's options: made-up requests, or a task and documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from cyclopts import Parameter
from pydantic import ValidationError

from fanout import Endpoint, Task, UsageError, load_schema
from fanout.cli import options
from fanout.inputs import read_inputs
from fanout.registry import load_kind
from fanout.sweep.point import How
from fanout.sweep.record import Work
from fanout.sweep.shape import Prompts, Shape
from fanout.wire import sha256_of
from fanout_workers.sweep.source import Documents, MadeUp, Source


@Parameter(name="*", group="Made-up requests")
@dataclass(frozen=True)
class ShapeOptions:
    """The shape of made-up requests."""

    prompt_tokens: Annotated[int, Parameter(help="Tokens of each prompt.")] = 1500
    output_tokens: Annotated[int, Parameter(help="Tokens of each reply.")] = 400
    shared_prefix: Annotated[
        int, Parameter(help="Of the prompt: tokens at its beginning that all have in common.")
    ] = 0
    seed: Annotated[
        int | None, Parameter(help="The same prompts again; default: others each time.")
    ] = None

    def shape(self) -> Shape:
        try:
            return Shape(
                prompt_tokens=self.prompt_tokens,
                output_tokens=self.output_tokens,
                shared_prefix_tokens=self.shared_prefix,
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(f"{first['loc'][0]}: {first['msg']}") from None


@Parameter(name="*", group="Your own task and documents")
@dataclass(frozen=True)
class TaskOptions:
    """A task kind and its documents; as for `fanout extract`."""

    input: Annotated[
        tuple[str, ...],
        Parameter(
            name=["--input", "-i"],
            help="JSONL, CSV, Parquet, .txt or .md, a folder or a quoted glob; may be repeated.",
            negative="",
        ),
    ] = ()
    schema: Annotated[
        str | None, Parameter(help="module:Model or file.py:Model, or a JSON Schema file.")
    ] = None
    task: Annotated[str, Parameter(help="Another task kind, by name or as module:Kind.")] = (
        "extract"
    )
    params: Annotated[
        str | None, Parameter(help="Further parameters of the task kind, as a JSON object.")
    ] = None
    prompt: options.Prompt = None
    show_schema: Annotated[
        bool | None, Parameter(help="Put the schema behind the prompt; default: yes.")
    ] = None
    text_field: Annotated[str | None, Parameter(help="Field that holds the document.")] = None
    id_field: Annotated[str | None, Parameter(help="Field that holds the id.")] = None
    field: Annotated[
        tuple[str, ...], Parameter(help="Another field that travels in the prompt.", negative="")
    ] = ()
    include: Annotated[tuple[str, ...], Parameter(help="Only files that match.", negative="")] = ()
    exclude: Annotated[tuple[str, ...], Parameter(help="No files that match.", negative="")] = ()
    max_tokens: options.MaxTokens = None
    temperature: Annotated[float | None, Parameter(help="Default: 0.")] = None
    reasoning_effort: options.ReasoningEffort = None

    def given(self) -> bool:
        """Whether a task is to be swept instead of made-up requests."""
        return bool(self.input or self.schema or self.params or self.task != "extract")

    def all_params(self) -> dict[str, Any]:
        """The task kind's parameters."""
        try:
            more = orjson.loads(self.params) if self.params else {}
        except orjson.JSONDecodeError as error:
            raise UsageError(f"--params is not JSON: {error}") from None
        if not isinstance(more, dict):
            raise UsageError("--params is not a JSON object")
        return more | options.given(
            schema=load_schema(self.schema) if self.schema else None,
            prompt=options.prompt_text(self.prompt),
            show_schema=self.show_schema,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            reasoning_effort=self.reasoning_effort,
            fields=self.field or None,
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """What every request is; each endpoint gets a source of its own.

    Attributes:
        work: as it is kept in the file.
        source: makes a source.
        max_tokens: completion tokens one reply may take.
    """

    work: Work
    source: Callable[[], Source]
    max_tokens: int


def workload(
    shape: ShapeOptions,
    task: TaskOptions,
    *,
    how: How,
    waves: int,
    timeout_s: float | None,
) -> Workload:
    """What the options come to.

    Raises:
        UsageError: they cannot be used.
    """
    common: dict[str, Any] = {"how": how, "waves": waves, "timeout_s": timeout_s}
    if not task.given():
        made = shape.shape()
        return Workload(
            Work(shape=made, **common),
            lambda: MadeUp(Prompts(made, seed=shape.seed)),
            made.output_tokens,
        )
    if not task.input:
        raise UsageError("a task needs documents: name them with --input")
    kind, params = _kind(task)
    work = Work(
        task=kind.name,
        params_sha256=sha256_of(params.model_dump(mode="json", by_alias=True)),
        inputs=task.input,
        **common,
    )
    return Workload(work, lambda: _documents(kind, params, task), _max_tokens(kind, params, task))


def for_endpoint(work: Work, endpoint: Endpoint) -> Work:
    """The work as one endpoint gets it."""
    return work.model_copy(update={"stream": endpoint.stream})


def _kind(task: TaskOptions) -> tuple[type[Task], Any]:
    kind = load_kind(task.task)
    try:
        return kind, kind.Params.model_validate(task.all_params())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "parameters"
        raise UsageError(f"{kind.name}: {place}: {first['msg']}") from None


def _documents(kind: type[Task], params: Any, task: TaskOptions) -> Documents:
    documents = read_inputs(
        task.input,
        text_field=task.text_field,
        id_field=task.id_field,
        include=task.include,
        exclude=task.exclude,
    )
    return Documents(kind(params), documents)


def _max_tokens(kind: type[Task], params: Any, task: TaskOptions) -> int:
    # As the kind itself asks for it: what its first request says.
    return _documents(kind, params, task).probe().max_tokens
