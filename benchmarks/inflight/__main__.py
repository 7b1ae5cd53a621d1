"""N in flight as the servers see it: with one and four workers, through kills, stops, restarts.

Requests take a log-normal time, one second in the mean but in `stopped`. Means are taken between
the 10 % and the 90 % mark of the replies; the maximum is that of the whole run. `after` is the
mean from one lease (10 s) after the event to the 90 % mark, `back_s` how long it took until half a
second held 0.99 N again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rig import TTL_S, Rig, Server, figures, rig, wait

Line = dict[str, Any]
FANOUT = str(Path(sys.executable).with_name("fanout"))


def one(n: int, items: int) -> Line:
    """One worker."""
    with rig([Server("spark", n)], {"default": 1}) as made:
        return figures(made, asyncio.run(made.run(items)))


def four(n: int, items: int) -> Line:
    """Four workers."""
    with rig([Server("spark", n)], {"default": 4}) as made:
        return figures(made, asyncio.run(made.run(items)))


def killed(n: int, items: int) -> Line:
    """SIGKILL to one of four workers, and a new one at once; what it held comes again later."""
    with rig([Server("spark", n)], {"default": 4}) as made:
        at: list[float] = []

        def event() -> None:
            at.append(made.server.now)
            made.signal(made.workers[0], signal.SIGKILL)
            made.start_worker(wait=False)

        # Enough for the lease to end well before the 90 % mark.
        outcome = asyncio.run(made.run(2 * items, events=[(0.2, event)]))
        return _after(made, at[0], figures(made, outcome))


def stopped(n: int, items: int) -> Line:
    """SIGSTOP to one of four workers for longer than its lease, with requests that outlast it."""
    n = max(4, n // 4)
    with rig([Server("spark", n, mean_s=12.0)], {"default": 4}) as made:
        held: list[float] = []

        def event() -> None:
            made.signal(made.workers[0], signal.SIGSTOP)
            wait(TTL_S + 6.0)
            held.append(made.server.in_flight / n)  # at the server, the stopped one's included
            made.signal(made.workers[0], signal.SIGCONT)

        outcome = asyncio.run(made.run(4 * n, events=[(0.2, event)]))
        return figures(made, outcome, while_stopped=round(held[0], 4))


def restarted(n: int, items: int) -> Line:
    """Every connection to Redis cut, then Redis killed and restarted on its append-only file."""
    with rig([Server("spark", n)], {"default": 4}) as made:
        at: list[float] = []

        def killing() -> None:
            at.append(made.server.now)
            made.kill_redis()
            wait(2.0)
            made.start_redis()

        events = [(0.2, made.cut_connections), (0.5, killing)]
        outcome = asyncio.run(made.run(2 * items, events=events))
        return figures(made, outcome, back_s=_back(made.server, at[0]))


def changed(n: int, items: int) -> Line:
    """N lowered to three eighths and raised to five quarters of it by the command, in mid-run."""
    low, high = max(1, 3 * n // 8), 5 * n // 4
    with rig([Server("spark", n)], {"default": 2}) as made:
        turns: list[tuple[int, float, float]] = []

        def turn(to: int) -> Callable[[], None]:
            def command() -> None:
                arguments = ["endpoint", "set", "spark", "--concurrency", str(to)]
                before = made.server.now
                subprocess.run([FANOUT, *arguments], check=True, stdout=subprocess.DEVNULL)
                turns.append((to, before, made.server.now))

            return command

        events = [(0.2, turn(low)), (0.4, turn(high)), (0.8, turn(n))]
        outcome = asyncio.run(made.run(2 * items, events=events))
        server = made.server
        last = float(server.stats()["in_flight"]["from_10_to_90_s"][1])
        phases = {}
        most = []
        for (to, _, start), end in zip(turns, [t[1] for t in turns[1:]] + [last], strict=True):
            # Down as requests finish, which takes as long as the longest of them.
            settled = start + min(6.0, (end - start) / 2)
            if end - settled > 1:
                between = server.stats(from_=settled, to=end)["between"]
                phases[str(to)] = round(between["mean"] / to, 4)
                most.append(between["max"] / to)
        told = figures(made, outcome, phases=phases)
        told["mean_over_n"] = min(phases.values())
        told["max_over_n"] = round(max(most), 4)
        told["max_over_largest_n"] = round(server.stats()["in_flight"]["max"] / high, 4)
        return told


def tiers(n: int, items: int) -> Line:
    """Two tiers with two workers each, at once."""
    heavy, light = Server("heavy", 3 * n // 4, "heavy"), Server("light", n // 4, "light", 0.5)
    with rig([heavy, light], {"heavy": 2, "light": 2}) as made:

        async def both() -> Any:
            return await asyncio.gather(
                made.run(3 * items // 4, "heavy"), made.run(items // 2, "light")
            )

        return figures(made, *asyncio.run(both()))


def endpoints(n: int, items: int) -> Line:
    """Two endpoints in a tier; one is killed and comes back."""
    first, second = Server("first", 5 * n // 8), Server("second", n - 5 * n // 8)
    with rig([first, second], {"default": 2}) as made:
        lives: list[Line] = []
        at: dict[str, float] = {}

        def event() -> None:
            assert second.process is not None
            lives.append(second.stats())
            at["died"] = first.now
            second.process.stop(0)
            wait(5.0)
            made.start_server(second)
            at["back"] = first.now

        outcome = asyncio.run(made.run(2 * items, events=[(0.25, event)]))
        told = figures(made, outcome)
        before, after = lives[0]["in_flight"], second.stats()["in_flight"]
        told |= {
            "first_alone": round(first.mean(at["died"], at["back"]), 4),
            "second_before": round(before["mean_10_90"] / second.n, 4),
            "second_back_s": _back(second, 0.0),
        }
        told["max_over_n"] = max(told["max_over_n"], round(before["max"] / second.n, 4))
        told["second_after"] = round(after["mean_10_90"] / second.n, 4)
        return told


def outage(n: int, items: int) -> Line:
    """The only endpoint of a tier is killed and comes back: items wait, and none fails."""
    with rig([Server("spark", n)], {"default": 2}) as made:
        lives: list[Line] = []

        def event() -> None:
            assert made.server.process is not None
            lives.append(made.server.stats())
            made.server.process.stop(0)
            wait(8.0)
            made.start_server(made.server)

        outcome = asyncio.run(made.run(items, events=[(0.4, event)]))
        told = figures(made, outcome, back_s=_back(made.server, 0.0))
        before = lives[0]["in_flight"]
        told["max_over_n"] = max(told["max_over_n"], round(before["max"] / n, 4))
        return told


def _after(made: Rig, event: float, told: Line) -> Line:
    server = made.server
    _, end = server.stats()["in_flight"]["from_10_to_90_s"]
    told["after"] = round(server.mean(event + TTL_S, end), 4) if end > event + TTL_S else None
    told["back_s"] = _back(server, event)
    begin = server.stats()["in_flight"]["from_10_to_90_s"][0]
    told["mean_with_event"] = told["mean_over_n"]
    whole, gap = server.mean(begin, end), (event, min(end, event + TTL_S))
    lost = server.mean(*gap) * (gap[1] - gap[0])
    told["mean_over_n"] = round(
        (whole * (end - begin) - lost) / (end - begin - (gap[1] - gap[0])), 4
    )
    return told


def _back(server: Server, event: float) -> float | None:
    """Seconds from the event until in flight had fallen and half a second held 0.99 N again."""
    curve = server.curve(event, server.now)
    lowest = min(range(min(len(curve), 2 * round(TTL_S))), key=lambda place: curve[place][1])
    for at, mean in curve[lowest:]:
        if mean >= 0.99 * server.n:
            return round(at - event, 1)
    return None


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (one, four, killed, stopped, restarted, changed, tiers, endpoints, outage)
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="inflight", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--items", type=int, help="of a scenario; default: 20 for each of N")
    options = parser.parse_args()
    if unknown := set(options.scenarios) - SCENARIOS.keys():
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    lines: dict[str, Line] = {}
    for name in options.scenarios or SCENARIOS:
        began = time.monotonic()
        lines[name] = SCENARIOS[name](options.n, options.items or 20 * options.n)
        lines[name]["wall_s"] = round(time.monotonic() - began, 1)
        print(name, json.dumps(lines[name]), file=sys.stderr, flush=True)
    summary = {
        key: {name: line[key] for name, line in lines.items()}
        for key in ("mean_over_n", "max_over_n", "lost", "duplicates")
    }
    print(json.dumps({**summary, "scenarios": lines}))


if __name__ == "__main__":
    main()
