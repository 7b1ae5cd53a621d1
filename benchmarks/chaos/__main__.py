"""Schedules of faults: does each document give exactly one record, whatever dies in between?

`--plan SEED` prints a schedule, `--one SEED` runs it in the foreground. Otherwise `--schedules`
of them run, `--jobs` at a time, each in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from chaoskit.faults import FAULTS
from chaoskit.plan import make_plan
from chaoskit.processes import die_with_parent
from chaoskit.schedule import STUCK_S, Outcome, run

#: Above what a schedule may take: starting, stuck, judging and stopping.
_LIMIT_S = STUCK_S + 240.0


def main() -> int:
    """0 when all schedules held."""
    options = _parser().parse_args()
    only = tuple(name for name in (options.faults or "").split(",") if name)
    if unknown := set(only) - FAULTS.keys():
        print(f"no fault {', '.join(sorted(unknown))}; {', '.join(FAULTS)}", file=sys.stderr)
        return 2
    if options.plan is not None:
        print("\n".join(make_plan(options.plan, only).lines()))
        return 0
    keep = Path(options.keep or tempfile.mkdtemp(prefix="fanout-chaos-"))
    keep.mkdir(parents=True, exist_ok=True)
    if options.one is not None:
        plan = make_plan(options.one, only)
        print("\n".join(plan.lines()), file=sys.stderr)
        outcome = asyncio.run(run(plan, _empty(keep / f"seed-{options.one}")))
        print(outcome.line())
        return 1 if outcome.problems else 0
    return asyncio.run(_many(options, keep))


async def _many(options: argparse.Namespace, keep: Path) -> int:
    began = time.monotonic()
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seeds {first} to {first + options.schedules - 1}; failures in {keep}", file=sys.stderr)
    seeds = iter(range(first, first + options.schedules))
    outcomes: list[Outcome] = []

    async def worker() -> None:
        for seed in seeds:
            if options.minutes and time.monotonic() - began > 60 * options.minutes:
                return
            outcome = await _one(seed, options, keep)
            outcomes.append(outcome)
            _tell(outcome, options, len(outcomes))

    await asyncio.gather(*(worker() for _ in range(options.jobs)))
    print(json.dumps(summary(outcomes, time.monotonic() - began)))
    return 1 if any(outcome.problems for outcome in outcomes) else 0


async def _one(seed: int, options: argparse.Namespace, keep: Path) -> Outcome:
    """One schedule in a process of its own; its folder stays if it failed."""
    folder = keep / f"seed-{seed}"
    command = [sys.executable, "-P", str(Path(__file__).parent), "--one", str(seed)]
    command += ["--keep", str(keep), *_same(options)]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent(),
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), _LIMIT_S)
        outcome = Outcome(**json.loads(said.decode(errors="replace").splitlines()[-1]))
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        return Outcome(seed, [f"harness: not over after {_LIMIT_S:g} s"], stuck=1)
    except (ValueError, IndexError, TypeError):
        return Outcome(seed, [f"harness: {said.decode(errors='replace')[-2000:]}"])
    if not outcome.problems:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def summary(outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    """The line of JSON."""
    struck = Counter(name for outcome in outcomes for name in outcome.struck)
    return {
        "schedules": len(outcomes),
        **{
            name: sum(getattr(outcome, name) for outcome in outcomes)
            for name in ("items", "lost", "twice", "above_n", "asked_twice", "allowed_twice")
        },
        "stuck": sum(outcome.stuck for outcome in outcomes),
        "left_processes": sum(outcome.left_processes for outcome in outcomes),
        "failed": sorted(outcome.seed for outcome in outcomes if outcome.problems),
        "longest_above_n_s": max((outcome.brief_s for outcome in outcomes), default=0.0),
        "longest_quiet_s": max((outcome.quiet_s for outcome in outcomes), default=0.0),
        "kinds": dict(sum((Counter(outcome.kinds) for outcome in outcomes), Counter())),
        "struck": dict(sorted(struck.items())),
        "seconds": round(seconds, 1),
    }


def _tell(outcome: Outcome, options: argparse.Namespace, number: int) -> None:
    head = f"[{number}] seed {outcome.seed}: {outcome.seconds:.0f} s, {', '.join(outcome.struck)}"
    if not outcome.problems:
        print(f"{head}: held", file=sys.stderr, flush=True)
        return
    again = " ".join(["--one", str(outcome.seed), *_same(options)])
    lines = [f"{head}: FAILED", *(f"    {problem}" for problem in outcome.problems)]
    lines += [f'    again: make bench NAME=chaos ARGS="{again}"']
    print("\n".join(lines), file=sys.stderr, flush=True)


def _same(options: argparse.Namespace) -> list[str]:
    return ["--faults", options.faults] if options.faults else []


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--schedules", type=int, default=50)
    parser.add_argument("--seed", type=int, help="of the first; default: any")
    parser.add_argument("--jobs", type=int, default=4, help="schedules at a time")
    parser.add_argument("--minutes", type=float, help="start no more after so many")
    parser.add_argument("--faults", help="only these, with commas")
    parser.add_argument("--keep", help="folder for what is left of failures; default: a new one")
    parser.add_argument("--plan", type=int, metavar="SEED", help="print this schedule")
    parser.add_argument("--one", type=int, metavar="SEED", help="run this schedule alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
