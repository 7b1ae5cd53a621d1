"""`fanout sweep`: which N is right for a server."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import httpx
from cyclopts import Parameter
from pydantic import ValidationError

from fanout import ConfigError, Endpoint, Failure, Unavailable, UsageError, aio, load_settings
from fanout.cli import options
from fanout.cli.console import note, plain, stderr, stdout
from fanout.cli.exits import Exit
from fanout.cli.files import check_free, write_whole
from fanout.config_file import config_path, names_endpoint, with_concurrency
from fanout.sweep.chart import chart
from fanout.sweep.plot import MISSING, can_plot, pictures
from fanout.sweep.record import Sweep, from_file, to_json
from fanout.sweep.search import FixedList, Plan, Search
from fanout.sweep.table import table, to_csv, verdict
from fanout_workers.model import ModelClient, open_transport
from fanout_workers.sweep.display import Display
from fanout_workers.sweep.runner import Runner
from fanout_workers.sweep.workload import (
    ShapeOptions,
    TaskOptions,
    Workload,
    for_endpoint,
    workload,
)

_FORMATS = (".json", ".csv", ".svg", ".png")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def sweep(
    *endpoints: Annotated[
        str,
        Parameter(help="Names from fanout.toml, or URLs; default: the only one configured."),
    ],
    concurrency: Annotated[
        str | None,
        Parameter(
            name=["--concurrency", "-c"], help="Ns, as 1,2,4,8; default: search for the best."
        ),
    ] = None,
    max_concurrency: Annotated[int, Parameter(help="The search goes no further.")] = 1024,
    waves: Annotated[
        int, Parameter(help="With -c: requests for each of the N slots; 1 = all at once.")
    ] = 1,
    steady: Annotated[
        bool, Parameter(negative="", help="With -c: hold N and measure a window, as the search.")
    ] = False,
    stream: Annotated[
        bool | None, Parameter(help="Read replies token by token; default: as configured.")
    ] = None,
    model: Annotated[str | None, Parameter(help="Model to ask for.")] = None,
    timeout: Annotated[
        float | None, Parameter(help="Seconds for one reply; default: derived from the work.")
    ] = None,
    budget: Annotated[str | None, Parameter(help="Time for all of it, as 90s, 20m or 2h.")] = None,
    together: Annotated[
        bool, Parameter(negative="", help="Several endpoints at once, not one after another.")
    ] = False,
    shape: ShapeOptions = ShapeOptions(),  # noqa: B008 - frozen
    task: TaskOptions = TaskOptions(),  # noqa: B008 - frozen
    output: Annotated[
        Path | None,
        Parameter(
            name=["--output", "-o"], help="Base name: writes .json, .csv, .svg and .png behind it."
        ),
    ] = None,
    resume: Annotated[
        Path | None, Parameter(help="JSON of the same sweep: only what is missing is measured.")
    ] = None,
    write: Annotated[
        bool, Parameter(negative="", help="Put the N that was found into fanout.toml.")
    ] = False,
    overwrite: options.Overwrite = False,
    quiet: Annotated[
        bool, Parameter(name=["--quiet", "-q"], negative="", help="Show no progress.")
    ] = False,
) -> int:
    """Measure throughput over N, requests in flight, and say which N is right.

    Without -c it searches by itself. It goes straight to the endpoint: no Redis and no worker.

    Example: fanout sweep spark -c 1,2,4,8,16,32,64,128,256 -o spark
    """
    ns = _numbers(concurrency)
    if waves < 1 or max_concurrency < 1 or (timeout is not None and timeout <= 0):
        raise UsageError("--waves, --max-concurrency and --timeout are above 0")
    how: Literal["wave", "steady"] = "steady" if steady or ns is None else "wave"
    work = workload(shape, task, how=how, waves=waves, timeout_s=timeout)
    chosen = _endpoints(endpoints, model, stream)
    if write:
        _check_writable(chosen)
    job = _Job(
        endpoints=chosen,
        work=work,
        plan=FixedList(ns) if ns is not None else Search(limit=max_concurrency),
        timeout_s=timeout,
        budget_s=_seconds(budget),
        together=together,
        base=_base(output, resume, overwrite=overwrite),
        before=from_file(resume) if resume is not None else [],
        quiet=quiet,
    )
    try:
        aio.run(job.run())
    finally:
        # Whatever ended it, what was measured is kept.
        job.show()
    if write:
        _write(job.sweeps)
    return job.exit_code()


@dataclass(slots=True)
class _Job:
    """The sweeps of one command."""

    endpoints: Sequence[Endpoint]
    work: Workload
    plan: Plan
    timeout_s: float | None
    budget_s: float | None
    together: bool
    base: Path | None
    before: Sequence[Sweep]
    quiet: bool
    sweeps: list[Sweep] = field(default_factory=list)
    out_of_time: bool = False

    async def run(self) -> None:
        transport = open_transport()
        try:
            for endpoint in self.endpoints:
                self.sweeps.append(await self._open(endpoint, transport))
            await self._within_budget(transport)
        finally:
            await transport.aclose()

    async def _within_budget(self, transport: httpx.AsyncBaseTransport) -> None:
        runners: list[Runner] = []
        display = Display(runners, quiet=self.quiet, keep=self.keep)
        for endpoint, one in zip(self.endpoints, self.sweeps, strict=True):
            runners.append(
                Runner(
                    sweep=one,
                    plan=self.plan,
                    endpoint=endpoint,
                    source=self.work.source(),
                    max_tokens=self.work.max_tokens,
                    observer=display,
                    timeout_s=self.timeout_s,
                )
            )
        try:
            async with display, asyncio.timeout(self.budget_s):
                await self._all(runners, transport)
        except TimeoutError:
            self.out_of_time = True
            for one in self.sweeps:
                if not one.complete:
                    one.ended = f"the budget of {self.budget_s:g} s ran out"
                    one.note(one.ended)

    async def _all(self, runners: Sequence[Runner], transport: httpx.AsyncBaseTransport) -> None:
        if not self.together:
            for runner in runners:
                await runner.run(transport)
            return
        try:
            async with asyncio.TaskGroup() as group:
                for runner in runners:
                    group.create_task(runner.run(transport))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _open(self, endpoint: Endpoint, transport: httpx.AsyncBaseTransport) -> Sweep:
        """A sweep to fill, or the one that is continued."""
        sweep = Sweep(
            endpoint=endpoint.name,
            url=endpoint.url,
            model=await _model(endpoint, transport),
            work=for_endpoint(self.work.work, endpoint),
            began_at=time.time(),
        )
        if not self.before:
            return sweep
        known = next((old for old in self.before if old.url == sweep.url), None)
        if known is None and len(self.before) == len(self.endpoints) == 1:
            known = self.before[0]  # to say what is different
        if known is None:
            return sweep
        sweep.check_same(known)
        return known.model_copy(update={"ended": None, "complete": False})

    def keep(self) -> None:
        """Write down what has been measured."""
        if self.base is not None:
            write_whole(_file(self.base, ".json"), to_json(self.sweeps))

    def show(self) -> None:
        """The tables, the chart and the files of what there is."""
        done = [one for one in self.sweeps if one.points]
        if not done:
            return
        for one in done:
            stdout.print(plain(f"{one.endpoint}  {one.model}  {_what(one)}"), style="bold")
            stdout.print(table(one, stdout.width))
            for line in verdict(one):
                stdout.print(line)
            stdout.print()
        if any(len(one.points) > 1 for one in done):
            stdout.print(chart(done, stdout.width))
        if self.base is not None:
            self._write_files(done, self.base)

    def exit_code(self) -> int:
        if any(one.analysis().recommended is None for one in self.sweeps):
            return Exit.NOT_OK
        return Exit.BUDGET if self.out_of_time else Exit.CLEAN

    def _write_files(self, done: Sequence[Sweep], base: Path) -> None:
        self.keep()
        write_whole(_file(base, ".csv"), to_csv(done))
        written = [".json", ".csv"]
        if can_plot():
            for form, content in pictures(done).items():
                write_whole(_file(base, f".{form}"), content)
                written.append(f".{form}")
        elif not self.quiet:
            note(MISSING)
        if not self.quiet:
            note(f"written: {', '.join(str(_file(base, end)) for end in written)}")


async def _model(endpoint: Endpoint, transport: httpx.AsyncBaseTransport) -> str | None:
    """The model that is swept.

    Raises:
        Unavailable: the endpoint does not answer.
        UsageError: it does not serve the model, or several and none is named.
    """
    try:
        served = await ModelClient(endpoint, transport).models()
    except Failure as failure:
        raise Unavailable(f"endpoint {endpoint.name}: {failure.message}") from None
    names = ", ".join(served) or "no model"
    if endpoint.model is None and len(served) != 1:
        raise UsageError(f"endpoint {endpoint.name} serves {names}: name one with --model")
    if endpoint.model is not None and endpoint.model not in served:
        raise UsageError(f"endpoint {endpoint.name} does not serve {endpoint.model!r}, but {names}")
    return endpoint.model or served[0]


def _endpoints(
    words: Sequence[str], model: str | None, stream: bool | None
) -> tuple[Endpoint, ...]:
    known = load_settings().endpoint
    if not words:
        if len(known) != 1:
            listed = f"configured: {', '.join(known)}" if known else "none is configured"
            raise UsageError(f"say which endpoint to sweep, by name or URL ({listed})")
        words = tuple(known)
    found = []
    for word in words:
        endpoint = _by_url(word) if "://" in word else known.get(word)
        if endpoint is None:
            listed = ", ".join(known) or "none"
            raise UsageError(f"there is no endpoint {word!r}; configured: {listed}; or give a URL")
        found.append(endpoint.model_copy(update=options.given(model=model, stream=stream)))
    if len({endpoint.name for endpoint in found}) != len(found):
        raise UsageError("an endpoint is named twice")
    return tuple(found)


def _by_url(url: str) -> Endpoint:
    place = urlsplit(url).netloc.rpartition("@")[2]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", place).strip("-.")[:64] or "endpoint"
    try:
        return Endpoint(name=name, url=url)
    except ValidationError as error:
        raise UsageError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None


def _numbers(words: str | None) -> list[int] | None:
    if words is None:
        return None
    try:
        found = [int(word) for word in words.replace(" ", "").split(",") if word]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"-c {words}: numbers from 1 up, with commas between them")
    return found


def _seconds(words: str | None) -> float | None:
    if words is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", words.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"--budget {words}: a time, as 90s, 20m or 2h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _base(output: Path | None, resume: Path | None, *, overwrite: bool) -> Path | None:
    if output is None:
        return resume.with_suffix("") if resume is not None else None
    base = output.with_suffix("") if output.suffix in _FORMATS else output
    if not base.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {base.parent}")
    for ending in _FORMATS:
        path = _file(base, ending)
        if resume is None or not path.exists() or not _file(base, ".json").samefile(resume):
            check_free(path, overwrite=overwrite)
    return base


def _file(base: Path, ending: str) -> Path:
    return base.with_name(base.name + ending)


def _what(one: Sweep) -> str:
    work = one.work
    if work.shape is not None:
        what = f"{work.shape.prompt_tokens:,} tokens in, {work.shape.output_tokens:,} out"
    else:
        what = f"task {work.task} on {', '.join(work.inputs)}"
    if work.how == "steady":
        return f"{what}, steady state"
    return f"{what}, one wave each" if work.waves == 1 else f"{what}, {work.waves} x N requests"


def _check_writable(endpoints: Sequence[Endpoint]) -> None:
    path = config_path()
    for endpoint in endpoints:
        if not names_endpoint(path, endpoint.name):
            raise ConfigError(
                f"--write: {path} has no [endpoint.{endpoint.name}]: add one with its url first"
            )


def _write(sweeps: Sequence[Sweep]) -> None:
    for one in sweeps:
        found = one.analysis().recommended
        if found is None:
            continue
        path = config_path()
        text, change = with_concurrency(path, one.endpoint, found)
        write_whole(path, text.encode())
        for line in change.lines():
            stderr.print(line)
