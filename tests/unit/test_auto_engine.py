"""The controller at the simulator's engine for an hour of virtual time: conditions, no figures."""

from __future__ import annotations

import pytest

from fanout.sim.curves import DENSE, MAMBA, MOE, Profile
from fanout.sim.engine import Engine, Sequence, Work
from fanout_workers.auto import Bounds, Controller, Gauges, Observation

HOUR_S, POLL_S = 3600.0, 5.0


def an_hour(profile: Profile, counted: bool) -> tuple[list[int], int]:
    """N at each poll of an hour of a closed loop without noise, and the tokens of its replies.

    `counted`: whether the server shows how many prompt tokens it has taken in.
    """
    engine, controller = Engine(profile), Controller(Bounds(16))
    open_since: dict[Sequence, float] = {}
    path, total, number, now, poll_at, area = [], 0, 0, 0.0, 0.0, 0.0
    completed = tokens = 0
    latency_s = 0.0
    while now < HOUR_S:
        event = engine.next_at()
        then = min(poll_at, event if event is not None else poll_at)
        area += len(open_since) * (then - now)
        now = then
        for sequence in engine.advance(now):
            latency_s += now - open_since.pop(sequence)
            completed, tokens = completed + 1, tokens + sequence.work.output_tokens
        if now >= poll_at:
            poll_at, shown = now + POLL_S, engine.gauges(now)
            gauges = Gauges(
                shown.running, shown.waiting, shown.kv_use, shown.preemptions,
                shown.generation_tokens, shown.prompt_tokens if counted else None,
            )  # fmt: skip
            controller.observe(
                Observation(
                    now,
                    len(open_since),
                    area / POLL_S,
                    completed,
                    tokens,
                    latency_s,
                    gauges=gauges,
                )
            )
            path.append(controller.n)
            total, completed, tokens, latency_s, area = total + tokens, 0, 0, 0.0, 0.0
        while len(open_since) < controller.n:
            number += 1
            length = 100 + 97 * number % 400
            open_since[engine.add(now, Work(str(number), 1500, length))] = now
    return path, total


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(
    ("profile", "least", "most"), [(DENSE, 240, 300), (MOE, 235, 300), (MAMBA, 8, 12)]
)
def test_it_ends_where_the_published_server_gives_the_most(
    profile: Profile, least: int, most: int, counted: bool
) -> None:
    path, tokens = an_hour(profile, counted)
    assert least <= path[-1] <= most
    assert tokens > 0.65 * HOUR_S * profile.aggregate(path[-1])
