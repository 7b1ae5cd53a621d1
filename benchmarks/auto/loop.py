"""A closed loop of clients at the simulator's engine, in virtual time."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from fanout.sim.curves import Profile
from fanout.sim.engine import Engine, QueueFull, Sequence, State, Work
from fanout_workers.auto import Gauges, Observation, Streams, pace_s

#: Seconds between two polls, at most: a leader's own.
POLL_S = 5.0
TIMEOUT_S = 900.0
#: A stream that has shown no token for so long is overdue.
SILENT_S = 10.0


class Policy(Protocol):
    """Says how many requests shall be in flight."""

    n: int

    def look(self, seen: Observation) -> None:
        """Take one poll."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients send: output lengths are lognormal around `output_tokens`."""

    output_tokens: float = 300.0
    sigma: float = 0.5
    most: int = 1200
    prompt_tokens: int = 1500
    #: Prompts are `longer` times as long between these two times, in seconds.
    longer: float = 1.0
    longer_from_s: float = math.inf
    longer_until_s: float = math.inf
    #: Requests of another client, always in flight from this time on.
    neighbour: int = 0
    neighbour_from_s: float = 0.0
    neighbour_until_s: float = math.inf

    @property
    def changes(self) -> bool:
        """Whether it is not the same all the time."""
        return self.longer != 1.0 or self.neighbour > 0


@dataclass(slots=True)
class Outcome:
    """What came of a run; times in seconds, `tokens` of replies that came."""

    marks: dict[float, int] = field(default_factory=dict)
    most_in_flight: int = 0
    timeouts: int = 0
    path: list[tuple[float, int]] = field(default_factory=list)
    n: int = 0
    duration_s: float = 0.0
    total_tokens: int = 0
    ends: list[tuple[float, int, int]] = field(default_factory=list)

    def since(self, mark: float) -> int:
        """Tokens from a mark to the last one."""
        return self.marks[max(self.marks)] - self.marks[mark]

    def first_at(self, n: int) -> float:
        """When N was first so large; the whole time if it never was."""
        return next((at for at, held in self.path if held >= n), max(self.marks))

    def least_n(self, since: float) -> int:
        """The smallest N from then on."""
        held = [n for at, n in self.path if at >= since]
        before = [n for at, n in self.path if at < since]
        return min([*held, *before[-1:]])

    def own_share(self, since: float) -> float:
        """This client's part of the tokens from then on."""
        _, own, other = next(end for end in self.ends if end[0] >= since)
        own, other = self.ends[-1][1] - own, self.ends[-1][2] - other
        return own / max(1, own + other)


class _Client:
    """Keeps n requests in flight and counts what comes back."""

    def __init__(self, loop: Loop, name: str) -> None:
        self.loop, self.name, self.n = loop, name, 0
        self.open: dict[Sequence, float] = {}
        self.deadlines: deque[tuple[float, Sequence]] = deque()
        self.tokens = self.completed = self.timeouts = self.overloads = 0
        self.latency_s = 0.0
        self.area = 0.0
        self.area_at = 0.0
        self.total = self.came = 0
        self.lasted_s = 0.0

    def fill(self, now: float) -> None:
        while len(self.open) < self.n:
            self._tick(now)
            try:
                sequence = self.loop.engine.add(now, self.loop.work(now))
            except QueueFull:
                self.overloads += 1
                return
            self.loop.owner[sequence] = self
            self.open[sequence] = now
            self.deadlines.append((now + TIMEOUT_S, sequence))

    def ended(self, now: float, sequence: Sequence) -> None:
        self._tick(now)
        began = self.open.pop(sequence)
        self.completed += 1
        self.tokens += sequence.work.output_tokens
        self.total += sequence.work.output_tokens
        self.latency_s += now - began
        self.lasted_s += now - began
        self.came += 1

    def expire(self, now: float) -> None:
        while self.deadlines and self.deadlines[0][0] <= now:
            _, sequence = self.deadlines.popleft()
            if sequence in self.open:
                self._tick(now)
                self.loop.engine.abort(now, sequence)
                del self.open[sequence], self.loop.owner[sequence]
                self.timeouts += 1

    def deadline(self) -> float:
        while self.deadlines and self.deadlines[0][1] not in self.open:
            self.deadlines.popleft()
        return self.deadlines[0][0] if self.deadlines else math.inf

    def take(self, now: float) -> tuple[int, int, float, int, int, float]:
        self._tick(now)
        found = (self.completed, self.tokens, self.latency_s, self.timeouts, self.overloads)
        area, self.area = self.area, 0.0
        self.completed = self.tokens = self.timeouts = self.overloads = 0
        self.latency_s = 0.0
        return (*found, area)

    def _tick(self, now: float) -> None:
        self.area += len(self.open) * (now - self.area_at)
        self.area_at = now


class Loop:
    """One run of one policy.

    Args:
        profile: the server.
        policy: how many requests are in flight.
        load: what is sent.
        seed: of lengths and noise.
        noise: standard deviation of the server's speed.
        mode: what the policy sees: M the server's metrics, T streamed tokens, C completions.
        chance: standard deviation of what the server's count of tokens says of the time between
            two polls, a share of it; no poll knows of another.
    """

    def __init__(
        self,
        profile: Profile,
        policy: Policy,
        load: Load,
        seed: int,
        noise: float,
        mode: str,
        chance: float = 0.0,
    ) -> None:
        self.engine = Engine(profile, seed=seed, noise=noise)
        self.owner: dict[Sequence, _Client] = {}
        self._policy, self._load, self._mode = policy, load, mode
        self._random = random.Random(seed + 1)
        self._mu = math.log(load.output_tokens) - load.sigma**2 / 2
        self._own, self._other = _Client(self, "own"), _Client(self, "other")
        self._chance, self._chances = chance, random.Random(seed + 2)
        self._generated = self._shown = 0.0
        self._counted = self._begun = 0
        self._timeouts = 0
        self._numbers = 0
        self._poll_s = POLL_S
        self._polled_at = 0.0

    def work(self, now: float) -> Work:
        load = self._load
        self._numbers += 1
        length = max(1, min(load.most, round(self._random.lognormvariate(self._mu, load.sigma))))
        factor = load.longer if load.longer_from_s <= now < load.longer_until_s else 1.0
        prompt = round(load.prompt_tokens * factor * self._random.uniform(0.8, 1.2))
        return Work(str(self._numbers), prompt, length)

    def run(self, marks: list[float]) -> Outcome:
        """Run until the last of the times in `marks`; tokens are noted at each."""
        outcome = Outcome()
        now, poll_at, ends = 0.0, 0.0, iter(sorted(marks))
        mark = next(ends)
        last = max(marks)
        while True:
            event = self.engine.next_at()
            target = min(
                event if event is not None else math.inf, poll_at, mark,
                self._own.deadline(), self._other.deadline(),
            )  # fmt: skip
            now = target
            for sequence in self.engine.advance(now):
                client = self.owner.pop(sequence)
                client.ended(now, sequence)
            self._own.expire(now)
            self._other.expire(now)
            if now >= poll_at:
                self._policy.look(self._observation(now))
                poll_at = now + self._poll_s
                if not outcome.path or outcome.path[-1][1] != self._policy.n:
                    outcome.path.append((now, self._policy.n))
                outcome.ends.append((now, self._own.total, self._other.total))
                load = self._load
                here = load.neighbour_from_s <= now < load.neighbour_until_s
                self._other.n = load.neighbour if here else 0
                self._own.n = self._policy.n
            self._own.fill(now)
            self._other.fill(now)
            outcome.most_in_flight = max(outcome.most_in_flight, len(self._own.open))
            if now >= mark:
                outcome.marks[mark] = self._own.total
                if now >= last:
                    break
                mark = next(ends)
        outcome.timeouts = self._timeouts
        outcome.n = self._policy.n
        outcome.duration_s = self._own.lasted_s / max(1, self._own.came)
        outcome.total_tokens = self._own.total + self._other.total
        outcome.ends = outcome.ends[::60]  # one in five minutes is enough to send home
        return outcome

    def _observation(self, now: float) -> Observation:
        own = self._own
        completed, tokens, latency_s, timeouts, overloads, area = own.take(now)
        self._timeouts += timeouts
        passed, self._polled_at = now - self._polled_at, now
        if completed:
            self._poll_s = pace_s(latency_s / completed, POLL_S)
        gauges = streams = None
        if self._mode == "M":
            shown = self.engine.gauges(now)
            gauges = Gauges(
                shown.running, shown.waiting, shown.kv_use, shown.preemptions,
                self._count_of(shown.generation_tokens), shown.prompt_tokens,
            )  # fmt: skip
        elif self._mode == "T":
            streams = self._streams(now, tokens)
        return Observation(
            now, len(own.open), area / passed if passed else 0.0, completed, tokens, latency_s,
            timeouts, overloads, 0.0, gauges, streams,
        )  # fmt: skip

    def _count_of(self, generated: float) -> float:
        """What the server's counter shows when so many tokens have been generated."""
        came, self._generated = generated - self._generated, generated
        off = self._chances.gauss(0.0, self._chance) if self._chance else 0.0
        self._shown += came * max(0.0, 1.0 + off)
        return self._shown

    def _streams(self, now: float, completed_tokens: int) -> Streams:
        shown, unstarted, stalled, begun = 0, 0, 0, 0
        for sequence, began in self._own.open.items():
            here = self.engine.generated(sequence, now)
            shown += here
            begun += sequence.first_token_at is not None
            if sequence.state in (State.WAITING, State.PREFILL) and now - began >= SILENT_S:
                if sequence.first_token_at is None:
                    unstarted += 1
                else:
                    stalled += 1
        arrived = completed_tokens + shown - self._counted
        self._counted = shown
        # What has begun and ended before was in flight, or came and went between two polls.
        started, self._begun = self._own.came + begun - self._begun, self._own.came + begun
        return Streams(max(0, arrived), unstarted, stalled, max(0, started))
