"""What every output can do."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import orjson

from fanout.errors import UsageError


class OutputError(UsageError):
    """An output cannot be opened, written or read."""


class OutputFailed(OutputError):
    """An output that was being written takes no more: a full disk, a disk that fails, a file that
    was removed. What was flushed before is safe, and it can be continued."""


class RecordWriter(ABC):
    """Takes records in batches.

    As a context manager it closes the output, or releases it if an exception leaves the block.
    """

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write a batch; raises what `write_lines` raises."""
        self.write_lines([to_json(dict(record)) for record in records])

    @abstractmethod
    def write_lines(self, lines: Sequence[bytes]) -> None:
        """Write a batch of records that are JSON already, each on one line without its end.

        Raises:
            OutputFailed: it cannot be written; none of the batch is.
        """

    @abstractmethod
    def flush(self) -> None:
        """Return when all that was written survives a crash of this machine.

        For standard output: when it has been handed to the reader.

        Raises:
            OutputFailed: it cannot be done; nothing that was written since the last time counts,
                and the writer takes no more.
        """

    @abstractmethod
    def close(self) -> None:
        """Flush and complete the output; a second call does nothing.

        Raises:
            OutputError: it cannot be completed; what was flushed is kept.
        """

    @abstractmethod
    def release(self) -> None:
        """Let go of the output as it is, incomplete, to be continued with `append`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.release()


def to_json(value: Any) -> bytes:
    """A value as JSON."""
    try:
        return orjson.dumps(value)
    except TypeError:
        # orjson refuses integers over 64 bits and lone surrogates, and a model may write both.
        return json.dumps(value, separators=(",", ":"), default=str).encode()


def from_json(text: bytes | str) -> Any:
    """The value that `to_json` wrote.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text)  # knows the lone surrogates that orjson refuses
    except RecursionError:
        raise ValueError("nested too deeply") from None


def from_line(line: bytes) -> dict[str, Any]:
    """The record of a line.

    Raises:
        ValueError: it is no JSON object.
    """
    record = from_json(line)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record
