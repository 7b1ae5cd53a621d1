"""The published pipelines, replayed: job postings through a 9B at N=4 and a 120B at N=256.

The real stack (embedded Valkey, workers, `fanout extract`) runs against simulators of the published
curves, SPEED times as fast. Published: 130 records an hour before, 3,900 after, 30 times as many.

What is published about the work: 1,024 output tokens at most, little reasoning on the 120B, and 65
completions a minute at N=256. What is not, and therefore assumed here:

- the length of an answer: 65 a minute at the 863 tokens/s published for N=256 are 796 tokens each,
  reasoning included. So the 120B's records/hour follow from the published ones, but for prefill:
  these answers are twice as long as those of the curve, and their prompts are not. The 9B's, with
  answers of the same length, are what its own curve gives;
- postings of about 1,000 tokens, with 300 of instruction and schema;
- for the scenario `thinking`, a 9B that reasons, 300 tokens in the mean, as it does unless told not
  to: then half of its answers do not fit 1,024 tokens, and fanout asks for them again.

`thinking` shows what a cause of that kind does to the published 130. The curve of the 9B alone,
23 tokens/s for each of four, cannot give it: 130 an hour are 111 s or 2,500 tokens a record, and
1,024 were allowed. The rest of the gap is not the model's: 130 is 77,648 records over 24 days of
wall clock, with whatever stood still in them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fanout.sim.curves import MAMBA, MOE, Profile
from fanout.sim.engine import Engine, Work
from fanout.sim.lengths import Distribution
from fanout.testing import SimulatorProcess, simulator_process

SPEED = 60
PUBLISHED = {"before": 130, "after": 3900, "speedup": 30}
MAX_TOKENS = 1024
REASONING = {"low": 30.0, "thinking": 300.0}
ANSWER = 60 * 862.84 / 65 - REASONING["low"]
SIGMA = 0.12
LENGTHS = Distribution("lognormal", (ANSWER / 2.718281828 ** (SIGMA**2 / 2), SIGMA))
LIMIT_S = 300
FANOUT = str(Path(sys.executable).with_name("fanout"))
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "skills": {"type": "array", "items": {"type": "string"}},
        "inferred_capabilities": {"type": "array", "items": {"type": "string"}},
        "requirements": {"type": "array", "items": {"type": "string"}},
        "seniority": {"enum": ["entry", "mid", "senior", "director"]},
        "culture_signals": {"type": "array", "items": {"type": "string"}},
    },
    "required": [
        "title",
        "skills",
        "inferred_capabilities",
        "requirements",
        "seniority",
        "culture_signals",
    ],
    "additionalProperties": False,
}
DUTIES = (
    "plan the week with the shift leads and keep the order book honest",
    "build and maintain the pipelines that feed our pricing models",
    "answer customers by telephone and in writing, also when they are cross",
    "inspect welds by eye and by ultrasound and sign them off",
    "teach two classes a term and mark what they hand in",
    "negotiate with suppliers in three countries",
    "look after the ward's stock of medicines and its records",
    "write the tests first, and the code that makes them pass",
)


@dataclass(frozen=True)
class Scenario:
    """One pipeline: a model, N, and how many postings show its rate."""

    name: str
    profile: Profile
    concurrency: int
    postings: int
    effort: str | None = None


THINKING = replace(
    MAMBA, reasoning_tokens=tuple((e, REASONING["thinking"]) for e in ("low", "medium", "high"))
)
SCENARIOS = (
    Scenario("before", MAMBA, 4, 120),
    Scenario("thinking", THINKING, 4, 120, "medium"),
    Scenario("after", MOE, 256, 2000, "low"),
)


def postings(path: Path, count: int) -> None:
    """Job postings of about 1,000 tokens, each another."""
    dice = random.Random(1)
    with path.open("w") as file:
        for number in range(count):
            words = [f"Reference {number}. We are looking for a colleague."]
            length = dice.lognormvariate(8.25, 0.3)
            while sum(map(len, words)) < length:
                words.append(f"You will {dice.choice(DUTIES)}.")
            file.write(json.dumps({"id": f"job-{number}", "text": " ".join(words)}) + "\n")


def ideal(scenario: Scenario) -> float:
    """Replies an hour that the engine alone gives when N are in flight at every moment."""
    dice = random.Random(2)
    engine, now, done = Engine(scenario.profile), 0.0, 0
    thought = REASONING.get(scenario.effort or "", 0.0)

    def add() -> None:
        engine.add(now, Work("", 1300, min(MAX_TOKENS, round(LENGTHS.draw(dice) + thought))))

    for _ in range(scenario.concurrency):
        add()
    rounds = 40 * scenario.concurrency
    began = 0.0
    while done < rounds:
        now = engine.next_at() or now
        for _ in engine.advance(now):
            done += 1
            began = now if done == rounds // 4 else began
            add()
    return (rounds - rounds // 4) / (now - began) * 3600


@contextmanager
def stack(place: Path) -> Iterator[None]:
    """`fanout up` in that folder."""
    log = place / "up.log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FANOUT_")}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [FANOUT, "up", "--no-flower"], cwd=place, env=clean, stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + 60
        while "ready;" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"fanout up does not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def run(scenario: Scenario, sim: SimulatorProcess, place: Path) -> dict[str, Any]:
    """Send the scenario's postings through the stack; what came of it, and how fast."""
    name = scenario.name
    postings(place / f"{name}.jsonl", scenario.postings)
    command = [FANOUT, "extract", f"{name}.jsonl", "--schema", "posting.json", "--tier", name]
    command += ["-o", f"{name}.out.jsonl", "--max-tokens", str(MAX_TOKENS), "--quiet"]
    sim.reset()
    done = subprocess.run(command, cwd=place, timeout=LIMIT_S, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"fanout extract ended with status {done.returncode}")
    seen = sim.stats(points=0)
    records = [json.loads(line) for line in (place / f"{name}.out.jsonl").open()]
    assert len({record["id"] for record in records}) == len(records) == scenario.postings
    valid = sum(record["status"] == "ok" for record in records)
    start, end = seen["in_flight"]["from_10_to_90_s"]
    # Records an hour: replies an hour over the middle 80 %, times the valid records a reply gave.
    replies_per_hour = 0.8 * seen["answered"] / (end - start) / SPEED * 3600
    return {
        "n": scenario.concurrency,
        "records": len(records),
        "valid": valid,
        "replies": seen["answered"],
        "records_per_hour": round(replies_per_hour * valid / seen["answered"]),
        "replies_per_hour": round(replies_per_hour),
        # Not for answers that are asked for again with twice the budget.
        "ideal_replies_per_hour": round(ideal(scenario)) if scenario.effort != "medium" else None,
        "mean_over_n": round(seen["in_flight"]["mean_10_90"] / scenario.concurrency, 4),
        "max_over_n": seen["in_flight"]["max"] / scenario.concurrency,
        "tokens_per_reply": round(seen["engine"]["generation_tokens"] / seen["answered"]),
    }


def start(scenario: Scenario, place: Path) -> tuple[str, ...]:
    """The simulator's options for a scenario."""
    profile = place / f"{scenario.name}.profile.json"
    efforts = dict(scenario.profile.reasoning_tokens)
    profile.write_text(json.dumps({**asdict(scenario.profile), "reasoning_tokens": efforts}))
    lengths = f"lognormal:{LENGTHS.arguments[0]:.1f},{SIGMA}"
    options = ["--model", str(profile), "--speed", str(SPEED), "--output-lengths", lengths]
    if scenario.effort is not None:
        options += ["--reasoning", scenario.effort]
    return tuple(options)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as sims:
        place = Path(folder)
        (place / "posting.json").write_text(json.dumps(SCHEMA))
        started, toml = {}, ""
        for scenario in SCENARIOS:
            sim = sims.enter_context(simulator_process(*start(scenario, place)))
            started[scenario.name] = sim
            toml += (
                f'[endpoint.{scenario.name}]\nurl = "{sim.url}"\ntier = "{scenario.name}"\n'
                f"concurrency = {scenario.concurrency}\n"
            )
        (place / "fanout.toml").write_text(toml)
        # At the same time: each has its own server, tier and worker, and N=4 costs next to nothing.
        with stack(place), ThreadPoolExecutor() as pool:
            running = [pool.submit(run, one, started[one.name], place) for one in SCENARIOS]
            figures = {one.name: ran.result() for one, ran in zip(SCENARIOS, running, strict=True)}
    after = figures["after"]["records_per_hour"]
    speedup = {
        "speedup": round(after / figures["before"]["records_per_hour"], 1),
        "speedup_over_thinking": round(after / figures["thinking"]["records_per_hour"], 1),
    }
    print(json.dumps({**figures, **speedup, "published": PUBLISHED, "speed": SPEED}))


if __name__ == "__main__":
    main()
