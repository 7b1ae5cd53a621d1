"""`concurrency = "auto"` against the best fixed N, on the simulator's engine in virtual time."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from loop import Load
from policies import Aimd, Auto, Gradient
from servers import CPU, H100, KINDS, PUBLISHED, unseen
from trials import SHORT_S, Best, Trial, best_of, row, shares

#: Two cores, and nobody needs to wait for the numbers.
PROCESSES = 2
LONGER = Load(longer=3.0, longer_from_s=3600, longer_until_s=9000)

#: Real servers and what they were sent: an H100, the same with replies of a third, and a processor
#: whose polls differ by chance.
REAL = {
    "graphics card, replies of 330": (H100, Load(330.0, 0.7, 1500, 900), 0.0),
    "graphics card, replies of 110": (H100, Load(110.0, 0.7, 400, 900), 0.0),
    "processor, 8.5 % by chance": (CPU, Load(330.0, 0.8, 1500, 140), 0.085),
}

Row = dict[str, Any]


def published(pool: Pool, best: dict[str, Best], seeds: int) -> Row:
    """The three servers, seen by their metrics, by streamed tokens, and by completions alone."""
    found: Row = {}
    for name, profile in PUBLISHED.items():
        for mode in "MTC":
            trials = [Trial(profile, Auto, seed, mode) for seed in range(seeds)]
            found.setdefault(name, {})[mode] = told(f"{name} {mode}", row(pool, best[name], trials))
    return found


def compared(pool: Pool, best: dict[str, Best], seeds: int) -> Row:
    """What others do on the same servers."""
    others: dict[str, Any] = {"fixed 16": 16, "fixed 64": 64, "fixed 512": 512}
    others |= {"AIMD on errors": Aimd, "latency gradient": Gradient}
    found: Row = {}
    for words, policy in others.items():
        for name, profile in PUBLISHED.items():
            trials = [Trial(profile, policy, seed, "C") for seed in range(seeds)]
            found.setdefault(words, {})[name] = told(
                f"{words}: {name}", row(pool, best[name], trials)
            )
    return found


def changed(pool: Pool, seeds: int) -> Row:
    """The same servers with more noise, and with prompts that are longer for a while."""
    found: Row = {}
    for name, profile in PUBLISHED.items():
        noisy = best_of(pool, profile, seeds, 0.1)
        trials = [Trial(profile, Auto, seed, noise=0.1) for seed in range(seeds)]
        found.setdefault("10 % noise", {})[name] = told(
            f"10 % noise: {name}", row(pool, noisy, trials)
        )
        longer = best_of(pool, profile, seeds, load=LONGER)
        trials = [Trial(profile, Auto, seed, load=LONGER) for seed in range(seeds)]
        found.setdefault("longer prompts", {})[name] = told(
            f"longer prompts: {name}", row(pool, longer, trials)
        )
    return found


def shared(pool: Pool, seeds: int) -> Row:
    """Another client that does not give way comes after an hour: who gets how much?"""
    found: Row = {}
    for name, profile in PUBLISHED.items():
        load = Load(neighbour=64, neighbour_from_s=3600)
        fixed = best_of(pool, profile, 1, load=load)
        trials = [Trial(profile, Auto, seed, load=load) for seed in range(seeds)]
        outcomes = pool.map(Trial.run, trials, chunksize=1)
        alone = [o.total_tokens for o in fixed.outcomes]
        found[name] = told(
            f"neighbour: {name}",
            {
                "total_over_best": round(
                    statistics.mean(o.total_tokens for o in outcomes) / statistics.mean(alone), 3
                ),
                "own_share_of_tokens_beside_it": round(
                    statistics.mean(o.own_share(3600) for o in outcomes), 3
                ),
                "n": round(statistics.median(o.n for o in outcomes)),
                "smallest_n_beside_it": min(o.least_n(3600) for o in outcomes),
            },
        )
    return found


def real(pool: Pool, seeds: int) -> Row:
    """Servers of the shapes of real ones: prompts are much of the work, or chance of the speed."""
    found: Row = {}
    marks = (SHORT_S / 3, SHORT_S)
    for words, (profile, load, chance) in REAL.items():
        best = best_of(pool, profile, seeds, load=load, marks=marks)
        trials = [
            Trial(profile, Auto, seed, load=load, marks=marks, chance=chance)
            for seed in range(seeds)
        ]
        outcomes = pool.map(Trial.run, trials, chunksize=1)
        pairs = list(zip(outcomes, best.outcomes, strict=True))
        whole = [o.marks[SHORT_S] / b.marks[SHORT_S] for o, b in pairs]
        last = [o.since(marks[0]) / b.since(marks[0]) for o, b in pairs]
        found[words] = told(
            f"real: {words}",
            {
                **shares("at_45_min", whole),
                **shares("last_30_min", last),
                "n": round(statistics.median(o.n for o in outcomes)),
                "best_n": best.n,
            },
        )
    return found


def random_servers(pool: Pool, count: int, seeds: int) -> Row:
    """Servers that nobody has tuned anything for."""
    found: Row = {}
    for number in range(100, 100 + count):
        profile = unseen(number)
        best = best_of(pool, profile, seeds)
        trials = [Trial(profile, Auto, seed) for seed in range(seeds)]
        found[profile.name] = told(profile.name, row(pool, best, trials))
    return found


def by_kind(rows: Row) -> Row:
    """Means over the servers of each kind."""
    found: Row = {}
    for kind, _ in KINDS:
        mine = [value for name, value in rows.items() if name.startswith(kind)]
        if mine:
            found[kind] = {
                key: round(statistics.mean(one[key] for one in mine), 3)
                for key in ("at_45_min", "at_4_h", "most_in_flight_over_best_n")
            }
            found[kind]["at_4_h_worst"] = min(one["at_4_h_worst"] for one in mine)
    return found


def told(words: str, figures: Row) -> Row:
    print(f"{words:28s} {json.dumps(figures)}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds, four random servers")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--servers", type=int, default=16, help="random servers")
    asked = parser.parse_args()
    seeds, servers = (2, 4) if asked.quick else (asked.seeds, asked.servers)
    began = time.monotonic()
    # Runs differ in length: a task each, so that no process waits for the other's long ones.
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        best = {name: best_of(pool, profile, seeds) for name, profile in PUBLISHED.items()}
        random_rows = random_servers(pool, servers, min(seeds, 3))
        result = {
            "bench": "auto",
            "seeds": seeds,
            "published": published(pool, best, seeds),
            "compared": compared(pool, best, min(seeds, 3)),
            "changed": changed(pool, seeds),
            "shared": shared(pool, min(seeds, 3)),
            "real": real(pool, seeds),
            "unseen_by_kind": by_kind(random_rows),
            "unseen": random_rows,
            "seconds": round(time.monotonic() - began),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
