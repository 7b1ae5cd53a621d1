"""The job file: what a client leaves beside an output, so that the same command can go on.

`out.jsonl.job` is small JSON that is replaced as a whole. Its checkpoint covers every record in the
output, because it is written before them: so what the output holds can be judged against the input
even where Redis has lost the job.
"""

from __future__ import annotations

import base64
import os
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fanout.errors import UsageError
from fanout.outputs import OutputError
from fanout.outputs.jsonl import sync_folder
from fanout.settings import Settings
from fanout.store import Checkpoint
from fanout.wire import JobSpec, sha256_of


class InputFile(BaseModel):
    """An input as it was named, with what tells cheaply whether it has changed since."""

    path: str
    bytes: int | None = None
    modified_ns: int | None = None

    @classmethod
    def of(cls, path: str) -> InputFile:
        """The input as it is now; of a folder, a pattern or standard input only the name."""
        if path != "-" and os.path.isfile(path):
            stat = os.stat(path)
            return cls(path=path, bytes=stat.st_size, modified_ns=stat.st_mtime_ns)
        return cls(path=path)


class Elsewhere(BaseModel):
    """Records of the job that were written to another output before this one was begun."""

    bits: str
    counts: dict[str, int]

    @classmethod
    def of(cls, bits: bytes, counts: Mapping[str, int]) -> Elsewhere:
        """The records of a ledger."""
        return cls(bits=base64.b64encode(zlib.compress(bits)).decode(), counts=dict(counts))

    def bitmap(self) -> bytes:
        """Their ordinals, as `fanout.store.bits` has them."""
        return zlib.decompress(base64.b64decode(self.bits))


class JobFile(BaseModel):
    """What is known of a job beside its output.

    Attributes:
        job: its id.
        state: `open` until the output is complete; `cancelled` where the job was.
        spec: what its items share, schema and prompt included.
        schema_sha256, params_sha256: digests of the schema and of all parameters.
        models: model asked for by endpoint name, as configured.
        inputs: what it reads, as named in `folder`.
        reading: how it reads them: options of `fanout.inputs.read_inputs`.
        documents, digest: the checkpoint: so many documents have been given to the job at least,
            and their digest.
        counts: records in the output by status, when this was written.
        redis: the server, without its password.
        document: the output is one document that is written at the end, and no file of records.
        accepted: the input was changed, and `--accept-changes` took it.
        previous: ids of jobs that it was before its parameters were changed.
    """

    model_config = ConfigDict(extra="ignore")

    version: int = 1
    job: str
    state: Literal["open", "complete", "cancelled"] = "open"
    spec: JobSpec
    schema_sha256: str | None = None
    params_sha256: str = ""
    models: dict[str, str | None] = Field(default_factory=dict)
    folder: str = ""
    inputs: list[InputFile] = Field(default_factory=list)
    reading: dict[str, Any] = Field(default_factory=dict)
    documents: int = 0
    digest: str = ""
    counts: dict[str, int] = Field(default_factory=dict)
    redis: str = ""
    document: bool = False
    accepted: bool = False
    previous: list[str] = Field(default_factory=list)
    elsewhere: Elsewhere | None = None
    started_at: float = Field(default_factory=time.time)
    updated_at: float = 0.0

    @classmethod
    def new(
        cls,
        job: str,
        spec: JobSpec,
        settings: Settings,
        inputs: Iterable[str],
        reading: Mapping[str, Any],
    ) -> Self:
        """The job file of a job that begins."""
        return cls(
            job=job,
            spec=spec,
            models=models_of(settings, spec.tier),
            folder=os.getcwd(),
            inputs=[InputFile.of(path) for path in inputs],
            reading=dict(reading),
            redis=settings.redis_name,
        ).digested()

    def digested(self) -> Self:
        """With the digests of its spec."""
        schema = self.spec.params.get("schema")
        self.schema_sha256 = None if schema is None else sha256_of(schema)
        self.params_sha256 = sha256_of(self.spec.params)
        return self

    @classmethod
    def load(cls, output: str) -> Self | None:
        """The job file of an output; None if there is none.

        Raises:
            UsageError: it cannot be read, or is none.
        """
        path = path_of(output)
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        except ValidationError:
            raise UsageError(
                f"{path} is no job file: remove it, and --overwrite replaces {output}"
            ) from None

    def save(self, output: str) -> None:
        """Put it beside the output; returns when it is on the disk.

        Raises:
            OutputError: it cannot be written.
        """
        path = path_of(output)
        self.updated_at = round(time.time(), 3)
        content = orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
        partial = path.with_name(f"{path.name}.tmp")
        try:
            with partial.open("wb") as file:
                file.write(content + b"\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(str(path))
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error

    @property
    def checkpoint(self) -> Checkpoint:
        """How far the input had been given to the job, at least."""
        return Checkpoint(self.documents, self.digest)

    def reached(self, upto: Checkpoint, counts: Mapping[str, int]) -> None:
        """Note a later checkpoint."""
        self.documents, self.digest = upto.count, upto.digest
        self.counts = {name: count for name, count in counts.items() if count}

    def inputs_are_as_they_were(self, inputs: Iterable[str]) -> bool:
        """Whether a look at sizes and times says that the inputs are the same."""
        return [InputFile.of(path) for path in inputs] == self.inputs

    def changes(self, spec: JobSpec, models: Mapping[str, str | None]) -> list[str]:
        """What a command wants that is not what this job does, as nouns."""
        if spec.kind != self.spec.kind:
            return [f"the task kind ({self.spec.kind}, now {spec.kind})"]
        changed: list[str] = []
        if spec.tier != self.spec.tier:
            changed.append(f"the tier ({self.spec.tier}, now {spec.tier})")
        names = self.spec.params.keys() | spec.params.keys()
        for name in sorted(names):
            if sha256_of(self.spec.params.get(name)) != sha256_of(spec.params.get(name)):
                changed.append(f"the {name}" if name in ("schema", "prompt") else name)
        before = {model for model in self.models.values() if model}
        now = {model for model in models.values() if model}
        if before and now and before != now:
            changed.append(f"the model ({', '.join(sorted(before))}, now {', '.join(sorted(now))})")
        return changed


def path_of(output: str) -> Path:
    """Where the job file of an output is."""
    return Path(f"{output}.job")


def models_of(settings: Settings, tier: str) -> dict[str, str | None]:
    """The model that each endpoint of the tier is asked for, as configured."""
    return {endpoint.name: endpoint.model for endpoint in settings.endpoints_of(tier)}
