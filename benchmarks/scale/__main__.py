"""Inputs of any size in flat memory: what 10,000, 100,000 and 1,000,000 documents of 2 KB cost.

Two views. `whole`: `fanout extract` from file to file over a Valkey of its own, one worker process
and `fanout sim`, which answers at once. `client`: the same command, but in place of the worker a
stand-in that settles made-up records, so that the client and Redis are what bounds.

The smallest size runs before and after each of the others, for machines are never quiet; `growth`
is the largest size's CPU per item over the median of the smallest's, and over a long run's own
first tenth. Figures are taken between the 10 % and the 90 % mark, or by tenths of a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from documents import write
from meter import Ledger, Sample, between, cost, look

from fanout.local.probes import free_port, http_ok
from fanout.local.processes import Process, Stack
from fanout.local.valkey import ValkeyServer

HERE = Path(__file__).parent
FANOUT = Path(sys.executable).with_name("fanout")
SIZES = (10_000, 100_000)
VIEWS = ["whole", "client"]
CAP = 256
MODEL = "openai/gpt-oss-120b"
SCHEMA = {
    "title": "Posting",
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "company": {"type": "string"},
        "remote": {"type": "boolean"},
        "salary": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
        "skills": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
    },
    "required": ["title", "company", "remote", "salary", "skills"],
    "additionalProperties": False,
}


@dataclass
class Place:
    """Where one run happens."""

    stack: Stack
    folder: Path
    redis: str
    env: dict[str, str]
    pids: dict[str, int] = field(default_factory=dict)

    def start(self, name: str, *argv: str | Path, **options: Any) -> Process:
        log = self.folder / f"{name}.log"
        process = Process(name, argv, log=log, env=self.env, cwd=self.folder)
        self.stack.start(process, **options)
        self.pids[name] = process.pid or 0
        return process


@contextmanager
def place_for(view: str, items: int, options: argparse.Namespace) -> Iterator[Place]:
    """A Redis of its own, and who answers."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name, Stack() as stack:
        folder = Path(name)
        data = folder / "valkey" if options.append_only else None
        valkey = ValkeyServer(data, log=folder / "valkey.log")
        valkey.start_in(stack)
        port = free_port()
        env = {
            "FANOUT_REDIS": valkey.url,
            "FANOUT_ENDPOINT__BENCH__URL": f"http://127.0.0.1:{port}/v1",
            "FANOUT_ENDPOINT__BENCH__MODEL": MODEL,
            "FANOUT_ENDPOINT__BENCH__CONCURRENCY": str(CAP),
        }
        place = Place(stack, folder, valkey.url, env, {"redis": valkey.process.pid or 0})
        shown = Ledger(valkey.url).has_worker
        if view == "client":
            argv = [HERE / "standin.py", valkey.url, str(items), str(options.rate)]
            place.start("stand-in", sys.executable, "-P", *argv, ready=shown)
        else:
            sim = [FANOUT, "sim", "--port", str(port), "--output-lengths", "40", "--seconds", "0"]
            place.start("server", *sim, ready=lambda: http_ok(port, "/stats?points=1"))
            place.start("worker", sys.executable, "-P", "-m", "fanout_workers", ready=shown)
        yield place


def measure(view: str, items: int, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one run."""
    with place_for(view, items, options) as place:
        write(items, place.folder / "docs.jsonl")
        (place.folder / "schema.json").write_text(json.dumps(SCHEMA))
        output = place.folder / f"out.{options.format}"
        argv = ["extract", "docs.jsonl", "--schema", "schema.json", "-o", output.name]
        argv += ["--max-tokens", "256"]
        if options.window:
            argv += ["--window", str(options.window)]
        ledger = Ledger(place.redis)
        empty_mb = ledger.memory_mb()
        client = place.start("client", FANOUT, *argv)
        samples, held = follow(place, client, ledger, items, options.limit_s)
        if client.returncode:
            raise SystemExit(f"the client ended with {client.returncode}:\n{client.tail()}")
        done = items if client.returncode == 0 else samples[-1].done
        figures = {"items": done} | figures_of(samples, done)
        figures["peak_mb"] = peaks(samples) | {"redis_used": ledger.memory_mb("used_memory_peak")}
        figures["peak_mb"] = {name: round(mb, 1) for name, mb in figures["peak_mb"].items()}
        figures["redis_empty_mb"] = round(empty_mb, 1)
        figures["redis_bytes_per_item"] = held
        if done == items:
            figures["close_s"] = round(time.monotonic() - samples[-1].at, 1)
            figures["written_once"] = written_once(output, items)
        return figures


def follow(
    place: Place, client: Process, ledger: Ledger, items: int, limit_s: float
) -> tuple[list[Sample], dict[str, int]]:
    """Samples until the client ends or the time is up; bytes of an entry in Redis, by key."""
    samples: list[Sample] = []
    held: dict[str, int] = {}
    began = time.monotonic()
    # Some thousand samples at most, however long it takes.
    every_s = 0.1 if items <= 20_000 else 0.5
    while client.alive and time.monotonic() - began < limit_s:
        seen = look(place.pids, ledger)
        if not samples or samples[-1].done < items:
            samples.append(seen)
        if not held.keys() >= {"queue", "records"} and seen.done > items / 4:
            found = ledger.held()
            held |= {key: size // count for key, (count, size) in found.items() if count > 50}
        time.sleep(every_s)
    return samples, held


def figures_of(samples: list[Sample], items: int) -> dict[str, Any]:
    """What a run cost in its middle, and by tenths of it."""
    first, last = between(samples, items / 10, 9 * items / 10)
    figures: dict[str, Any] = cost(first, last)
    figures["rss_mb"] = {
        name: [round(sample.rss[name], 1) for sample in (first, last)] for name in first.rss
    }
    figures["redis_used_mb"] = [round(sample.redis_mb, 1) for sample in (first, last)]
    if items >= 100_000:
        marks = [between(samples, items * n / 10, items * (n + 1) / 10) for n in range(10)]
        figures["tenths"] = [cost(*mark) | {"rss_mb": _whole(mark[1].rss)} for mark in marks]
    return figures


def peaks(samples: list[Sample]) -> dict[str, float]:
    """The largest resident set of each process that a sample has seen."""
    return {name: max(s.rss.get(name, 0.0) for s in samples) for name in samples[-1].rss}


def written_once(output: Path, items: int) -> bool:
    """Whether each document has exactly one record in the output."""
    seen = bytearray(items)
    for identity in _ids(output):
        seen[int(identity.removeprefix("p"))] += 1
    return seen == b"\1" * items


def _ids(output: Path) -> Iterator[str]:
    if output.suffix == ".parquet":
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(output).iter_batches(columns=["id"]):
            yield from batch.column(0).to_pylist()
        return
    with output.open("rb") as stream:
        for line in stream:
            yield orjson.loads(line)["id"]


def runs(view: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every size, the smallest around each of the others; and what grew."""
    small, *larger = sorted(options.sizes)
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in (small, *larger)}
    order = [small, *(size for each in larger for size in (each, small))]
    for size in order:
        figures = measure(view, size, options)
        print(f"{view} {size}: {json.dumps(figures)}", file=sys.stderr, flush=True)
        found[size].append(figures)
    result: dict[str, Any] = {str(size): medians(each) for size, each in found.items()}
    if larger:
        result["growth"] = growth(result[str(small)], found[larger[-1]][0])
    return result


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One run's figures, with the median over all of those that are numbers."""
    numbers = [key for key, value in runs[0].items() if isinstance(value, float)]
    middle = {key: statistics.median(run[key] for run in runs) for key in numbers}
    checked = [run["written_once"] for run in runs if "written_once" in run]  # it came to its end
    return runs[-1] | middle | ({"written_once": all(checked)} if checked else {})


def growth(small: dict[str, Any], large: dict[str, Any]) -> dict[str, float]:
    """The largest size over the smallest, and its last tenth but one over its second."""
    found: dict[str, float] = {}
    costs = [key for key in large if key.endswith("cpu_s_per_1000")]
    for key in costs:
        found[key] = round(large[key] / small[key], 3)
    found["all_cpu"] = round(sum(large[k] for k in costs) / sum(small[k] for k in costs), 3)
    if tenths := large.get("tenths"):
        early, late = tenths[1], tenths[8]
        within = sum(late[key] for key in costs) / sum(early[key] for key in costs)
        found["all_cpu_within_the_run"] = round(within, 3)
    return found


def _whole(values: dict[str, float]) -> dict[str, int]:
    return {name: round(value) for name, value in values.items()}


def main() -> None:
    options = _parser().parse_args()
    result = {view: runs(view, options) for view in options.views}
    print(json.dumps({"sizes": sorted(options.sizes), **result}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench NAME=scale ARGS=…")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="items")
    parser.add_argument(
        "--views", nargs="+", default=["whole", "client"], choices=["whole", "client"]
    )
    parser.add_argument("--format", default="jsonl", choices=["jsonl", "parquet"])
    parser.add_argument("--window", type=int, help="items submitted ahead; default: the client's")
    parser.add_argument("--rate", type=float, default=0.0, help="of the stand-in, items/s; 0 = all")
    parser.add_argument("--append-only", action="store_true", help="Redis writes its log to disk")
    parser.add_argument("--folder", help="where input and output go; default: the temporary folder")
    parser.add_argument(
        "--limit-s", type=float, default=3600, help="of one run; then its part counts"
    )
    return parser


if __name__ == "__main__":
    main()
