"""One run of one policy, and the best that a fixed N can do on the same server."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from multiprocessing.pool import Pool

from loop import Load, Loop, Outcome, Policy
from policies import Fixed

from fanout.sim.curves import Profile

SHORT_S, LONG_S = 2700.0, 14_400.0
MARKS = (SHORT_S, LONG_S)
NOISE = 0.04


@dataclass(frozen=True, slots=True)
class Trial:
    """Everything that a run depends on."""

    profile: Profile
    policy: type[Policy] | int
    seed: int
    mode: str = "M"
    noise: float = NOISE
    load: Load = field(default_factory=Load)
    marks: tuple[float, ...] = MARKS
    chance: float = 0.0

    def run(self) -> Outcome:
        policy = Fixed(self.policy) if isinstance(self.policy, int) else self.policy()
        loop = Loop(self.profile, policy, self.load, self.seed, self.noise, self.mode, self.chance)
        return loop.run(list(self.marks))


@dataclass(frozen=True, slots=True)
class Best:
    """The best fixed N of a server under a load: its tokens at each mark by seed.

    `enough` is the smallest N that gives .9 of it in the long run.
    """

    n: int
    enough: int
    outcomes: list[Outcome]

    @property
    def duration_s(self) -> float:
        """Mean duration of a request at that N."""
        return statistics.mean(outcome.duration_s for outcome in self.outcomes)


def best_of(
    pool: Pool,
    profile: Profile,
    seeds: int,
    noise: float = NOISE,
    load: Load | None = None,
    marks: tuple[float, ...] = MARKS,
) -> Best:
    """Brute force: a coarse grid, finer ones around its best, then all seeds at the best."""
    load = load or Load()
    # Where nothing changes, a fifth of the time tells what all of it would.
    since, until = (0.0, marks[-1]) if load.changes else (0.1 * marks[-1], 0.3 * marks[-1])
    tried: dict[int, int] = {}

    def weigh(grid: list[int]) -> int:
        new = [n for n in grid if n not in tried]
        # Without noise, and over the whole time: one seed tells what many would.
        trials = [Trial(profile, n, 0, "M", 0.0, load, (since, until)) for n in new]
        for n, outcome in zip(new, pool.map(Trial.run, trials, chunksize=1), strict=True):
            tried[n] = outcome.marks[until] - outcome.marks[since]
            if load.neighbour:  # then what both get is the measure
                tried[n] = outcome.total_tokens
        return max(tried, key=lambda n: tried[n])

    coarse = sorted({round(4 * 1.4**power) for power in range(17)})
    top = weigh([n for n in coarse if n <= 1024])
    for factors in ((0.82, 0.91, 1.1, 1.2), (0.965, 1.035), (0.983, 1.017)):
        top = weigh([round(top * factor) for factor in factors])
    enough = min(n for n in tried if tried[n] >= 0.9 * tried[top])
    trials = [Trial(profile, top, seed, "M", noise, load, marks) for seed in range(seeds)]
    return Best(top, enough, pool.map(Trial.run, trials, chunksize=1))


def shares(name: str, found: list[float]) -> dict[str, float]:
    """Shares of the best, one a seed: their mean as `name`, and the worst of them."""
    return {name: round(statistics.mean(found), 3), f"{name}_worst": round(min(found), 3)}


def row(pool: Pool, best: Best, trials: list[Trial]) -> dict[str, float]:
    """What came of the trials, one a seed, as shares of the best fixed N."""
    found = pool.map(Trial.run, trials, chunksize=1)
    short = [
        o.marks[SHORT_S] / b.marks[SHORT_S] for o, b in zip(found, best.outcomes, strict=False)
    ]
    long = [o.marks[LONG_S] / b.marks[LONG_S] for o, b in zip(found, best.outcomes, strict=False)]
    reached = [o.first_at(best.enough) / best.duration_s for o in found]
    return {
        **shares("at_45_min", short),
        **shares("at_4_h", long),
        "most_in_flight_over_best_n": round(
            statistics.mean(o.most_in_flight for o in found) / best.n, 2
        ),
        "most_in_flight_over_best_n_worst": round(max(o.most_in_flight for o in found) / best.n, 2),
        "d_to_90_percent": round(statistics.mean(reached), 1),
        "n": round(statistics.median(o.n for o in found)),
        "best_n": best.n,
        "timeouts": sum(o.timeouts for o in found),
    }
