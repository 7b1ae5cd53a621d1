"""A server for the controller of N that is a formula: no queue, no clock, no chance."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from fanout_workers.auto import Bounds, Controller, Decision, Gauges, Observation, Streams
from fanout_workers.auto.observe import Sample
from fanout_workers.auto.window import Window

POLL_S = 5.0
TOKENS = 300


@dataclass
class Formula:
    """Serves n requests at `curve(n)` tokens/s; what exceeds `slots` waits.

    Attributes:
        mode: what it shows: M metrics, T streams, C completions.
        kv_of: KV use at n running.
        others: requests of another client.
        share: how much of N is in flight.
        prompts: its counter of prompt tokens; they take no time here.
    """

    curve: Callable[[float], float]
    mode: str = "M"
    slots: int = 10_000
    kv_of: Callable[[float], float] | None = None
    others: int = 0
    share: float = 1.0
    timeouts: int = 0
    overloads: int = 0
    retry_after_s: float = 0.0
    preemptions: int = 0
    stalled: int = 0
    tokens: float = 0.0
    at: float = 0.0
    owed: float = 0.0
    decisions: list[Decision] = field(default_factory=list)
    in_flight: int | None = None
    prompts: float | None = None

    def seen(self, n: int) -> Observation:
        """One poll with N in force."""
        in_flight = round(n * self.share) if self.in_flight is None else self.in_flight
        total = in_flight + self.others
        running = min(total, self.slots)
        rate = self.curve(max(running, 1))
        own = rate * in_flight / max(total, 1)
        duration = in_flight * TOKENS / own if own else 0.0
        self.at += POLL_S
        self.tokens += rate * POLL_S
        self.owed += own * POLL_S / TOKENS
        completed, self.owed = int(self.owed), self.owed % 1
        gauges = streams = None
        if self.mode == "M":
            kv = self.kv_of(running) if self.kv_of else 0.01
            gauges = Gauges(
                running, total - running, kv, self.preemptions, self.tokens, self.prompts
            )
        elif self.mode == "T":
            streams = Streams(round(own * POLL_S), total - running, self.stalled)
        return Observation(
            self.at, in_flight, float(in_flight), completed, completed * TOKENS,
            completed * duration, self.timeouts, self.overloads, self.retry_after_s, gauges,
            streams,
        )  # fmt: skip

    def drive(self, controller: Controller, polls: int) -> list[Decision]:
        """Let the controller look so many times; what it decided."""
        made = [controller.observe(self.seen(controller.n)) for _ in range(polls)]
        self.decisions += made
        return made

    def until(
        self, controller: Controller, met: Callable[[Decision], bool], polls: int = 3000
    ) -> Decision:
        """The first decision that meets the condition."""
        for _ in range(polls):
            (made,) = self.drive(controller, 1)
            if met(made):
                return made
        raise AssertionError([(d.at, d.n, d.phase, d.reason) for d in self.decisions if d.noted])


def controller(start: int = 16, most: int = 1024) -> Controller:
    return Controller(Bounds(start=start, most=most))


def linear(n: float) -> float:
    return 5.0 * n


def flat_from(top: float, alpha: float = 0.6) -> Callable[[float], float]:
    """Rises with elasticity `alpha` up to `top`, and is flat from there."""
    return lambda n: 30.0 * min(n, top) ** alpha


def cliff_at(top: float, alpha: float = 0.6) -> Callable[[float], float]:
    """Rises with elasticity `alpha` up to `top`, and falls by .3 from there."""
    return lambda n: 30.0 * n**alpha if n <= top else 30.0 * top**alpha * (n / top) ** -0.3


def by_chance(sd: float, polls: int = 300) -> Iterator[float]:
    """Tokens/s that differ from poll to poll by chance alone, by that share of them."""
    draw = random.Random(1)
    return (1000.0 * (1 + draw.gauss(0.0, sd)) for _ in range(polls))


def wandering(sd: float, polls: int = 300) -> Iterator[float]:
    """Tokens/s that go on from where they are, by that share of them a poll."""
    draw, rate = random.Random(1), 1000.0
    for _ in range(polls):
        rate *= math.exp(draw.gauss(0.0, sd))
        yield rate


def looked_at(rates: Iterable[float]) -> Window:
    """The past of a server that gave so many tokens/s to ten requests."""
    window, tokens = Window(), 0.0
    for poll, rate in enumerate(rates):
        tokens += POLL_S * rate
        gauges = Gauges(10, 0, 0.01, 0, tokens)
        window.add(Observation(POLL_S * poll, 10, 10.0, 0, 0, 0.0, gauges=gauges))
    return window


def polled(poll: int, n: int, rate: float) -> Sample:
    """What a poll shows of `n` requests in flight that make `rate` tokens/s."""
    return Sample(POLL_S * poll, POLL_S, n, n, n, rate, 0, 0, 0.0, 0)
