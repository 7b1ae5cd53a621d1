"""A sweep as it is kept in a file, to be read again and continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fanout.errors import UsageError
from fanout.sweep.analysis import Analysis, analyse, scaling
from fanout.sweep.point import How, Point
from fanout.sweep.shape import Shape

#: What tells the file from other JSON.
_FORMAT: Literal["fanout-sweep-1"] = "fanout-sweep-1"


class Work(BaseModel):
    """What every request of a sweep was.

    Attributes:
        shape: of made-up requests; None with a task kind.
        task: name of the task kind, with the SHA-256 of its parameters and its inputs.
        stream: replies were read token by token.
        waves: requests for each slot; None for a steady state.
        timeout_s: as it was given; None = derived.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    shape: Shape | None = None
    task: str | None = None
    params_sha256: str | None = None
    inputs: tuple[str, ...] = ()
    how: How = "wave"
    waves: int = 1
    stream: bool = False
    timeout_s: float | None = None


class Sweep(BaseModel):
    """One endpoint's curve; grows point by point.

    Attributes:
        endpoint: its name.
        url: its base URL.
        model: what it serves.
        work: what was sent.
        began_at: Unix time in seconds.
        seconds: spent on the points.
        points: in the order in which they were measured.
        notes: what a reader has to know of them.
        ended: why no more were measured; None = interrupted.
        complete: whether the plan was carried out to its end.
    """

    model_config = ConfigDict(extra="ignore")

    endpoint: str
    url: str
    model: str | None = None
    work: Work = Field(default_factory=Work)
    began_at: float = 0.0
    seconds: float = 0.0
    points: list[Point] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    ended: str | None = None
    complete: bool = False

    def ordered(self) -> list[Point]:
        """The points by N."""
        return sorted(self.points, key=lambda point: point.concurrency)

    def analysis(self) -> Analysis:
        """What the points come to."""
        return analyse(self.points)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def check_same(self, other: Sweep) -> None:
        """Raise `UsageError` if points of `other` cannot stand beside those of this sweep."""
        for name, mine, theirs in (
            ("endpoint", self.url, other.url),
            ("model", self.model, other.model),
            *(
                (key, getattr(self.work, key), getattr(other.work, key))
                for key in Work.model_fields
            ),
        ):
            if mine != theirs:
                raise UsageError(
                    f"cannot go on with a sweep of another {name}: it has {_shown(theirs)}, "
                    f"this one {_shown(mine)}"
                )


def to_json(sweeps: list[Sweep]) -> bytes:
    """The file of one or more sweeps, analyses included."""
    document = {"format": _FORMAT, "sweeps": [_document(sweep) for sweep in sweeps]}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def from_file(path: Path) -> list[Sweep]:
    """The sweeps of a file.

    Raises:
        UsageError: it cannot be read, or is no sweep.
    """
    try:
        document: Any = orjson.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise UsageError(f"{path} is not a sweep written by `fanout sweep -o`")
    try:
        return [_in_measured_order(entry) for entry in document.get("sweeps", [])]
    except ValidationError as error:
        raise UsageError(f"{path} is not a whole sweep: {error.errors()[0]['msg']}") from None


def _in_measured_order(entry: Any) -> Sweep:
    # A person reads rows by N; the search goes by the order in which they were measured.
    sweep = Sweep.model_validate(entry)
    order = {n: place for place, n in enumerate(entry.get("order", []))}
    sweep.points.sort(key=lambda point: order.get(point.concurrency, len(order)))
    return sweep


def _document(sweep: Sweep) -> dict[str, Any]:
    points = [
        {**point.model_dump(mode="json"), "scaling": scaling(sweep.points, point)}
        for point in sweep.ordered()
    ]
    return {
        **sweep.model_dump(mode="json", exclude={"points"}),
        "order": [point.concurrency for point in sweep.points],
        "points": points,
        "analysis": sweep.analysis().model_dump(mode="json"),
    }


def _shown(value: object) -> str:
    return str(value) if value not in (None, (), "") else "none"
