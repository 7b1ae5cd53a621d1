"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from fanout.errors import UsageError

Redis = Annotated[
    str | None, Parameter(help="URL of Redis or Valkey; default: from the configuration.")
]
Tier = Annotated[
    str | None, Parameter(help="Tier of endpoints; needed only where several are configured.")
]
Output = Annotated[
    str,
    Parameter(
        name=["--output", "-o"],
        allow_leading_hyphen=True,  # for `-`
        help="Output file (.jsonl or .parquet), or - for stdout.",
    ),
]
Overwrite = Annotated[
    bool, Parameter(negative="", help="Replace the output file if it is there already.")
]
Resume = Annotated[
    str | None,
    Parameter(help="Go on with this job; not needed where the output has its job file beside it."),
]
AcceptChanges = Annotated[
    bool,
    Parameter(
        negative="",
        help="Go on although input, schema, prompt or model have changed, for what is not done.",
    ),
]
Quiet = Annotated[
    bool, Parameter(name=["--quiet", "-q"], negative="", help="Show no progress and no report.")
]
MaxTokens = Annotated[
    int | None, Parameter(help="Completion tokens one reply may take, reasoning included.")
]
ReasoningEffort = Annotated[
    str | None, Parameter(help="low, medium or high; default: the endpoint's setting.")
]
Prompt = Annotated[
    str | None, Parameter(help="Instruction to the model; @FILE reads it from a file.")
]
Window = Annotated[
    int | None,
    Parameter(
        help="Items submitted ahead of what is written; default: 4 x N.",
        validator=validators.Number(gte=1),
    ),
]
Results = Annotated[
    bool,
    Parameter(negative="", help="Also keep each record in Celery's result backend for a day."),
]
OnStall = Annotated[
    str,
    Parameter(
        help="When no record comes for too long: wait (and say why), exit (pause the job), or a "
        "command to run; see docs/stalls.md."
    ),
]


def prompt_text(prompt: str | None) -> str | None:
    """The prompt itself: `@FILE` is read.

    Raises:
        UsageError: the file cannot be read, or is empty.
    """
    if prompt is None or not prompt.startswith("@"):
        return prompt
    path = Path(prompt[1:])
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the prompt {path}: {error}") from error
    if not text.strip():
        raise UsageError(f"the prompt {path} is empty")
    return text


def given(**params: object) -> dict[str, object]:
    """The parameters that were given; the task kind has its own defaults for the rest."""
    return {name: value for name, value in params.items() if value is not None}
