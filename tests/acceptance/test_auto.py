"""`concurrency = "auto"` on real workers at the simulator: it climbs, holds, and is handed over."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path

from kit import alive_in, fanout, hostile, started, until

from tests.integration.servers import running_server

SCHEMA = {"title": "T", "type": "object", "properties": {"word": {"type": "string"}}}
SLOTS = 24
LEADS = "this worker finds the N of endpoint spark"
#: Held are the slots and a short queue, 1.1 times as many and one. A probe that is under way when
#: one looks has 17 % more, where polls differ by chance as much as they do in so short a time.
MOST = 1.17 * (1.1 * SLOTS + 1)


def said(log: Path, words: str) -> bool:
    return words in log.read_text()


def test_n_is_found_and_the_leader_s_death_survived(tmp_path: Path) -> None:
    here = hostile(tmp_path)
    url = here / "url"
    (here / "schema.json").write_text(json.dumps(SCHEMA))
    rows = [json.dumps({"id": str(n), "text": "a b c"}) for n in range(100_000)]
    (here / "docs.jsonl").write_text("\n".join(rows))
    simulator = (
        *("sim", "--model", "moe", "--speed", "60", "--port", "0", "--ready-file", str(url)),
        *("--max-num-seqs", str(SLOTS), "--output-lengths", "lognormal:265,0.5"),
    )
    with started(*simulator, cwd=here, log=here / "sim.log") as server:
        until(lambda: url.exists() and url.read_text(), "the simulator listens", process=server)
        (here / "fanout.toml").write_text(
            'auto_poll_s = 0.2\n[endpoint.spark]\nconcurrency = "auto"\nstart_concurrency = 4\n'
            f'url = "{url.read_text().strip()}"\n'
        )
        with running_server("valkey") as redis, ExitStack() as stack:
            env = {"FANOUT_REDIS": redis}
            logs = [here / "one.log", here / "other.log"]
            workers = [
                stack.enter_context(started("worker", cwd=here, env=env, log=log)) for log in logs
            ]
            for worker, log in zip(workers, logs, strict=True):
                until(lambda log=log: said(log, " ready."), "it is ready", process=worker, log=log)
            job = ("extract", "docs.jsonl", "--schema", "schema.json", "-o", "out.jsonl")
            stack.enter_context(started(*job, cwd=here, env=env, log=here / "job.log"))

            def n() -> int:
                shown = re.search(r"(\d+) \(auto\)", fanout("endpoint", cwd=here, env=env).stdout)
                return int(shown[1]) if shown else 0

            # It climbs until requests queue in the server, and keeps a short queue from then on.
            leader = logs[0] if said(logs[0], LEADS) else logs[1]
            until(lambda: said(leader, "queue for slots"), "the slots are found", log=leader)
            assert 0.9 * SLOTS <= n() <= MOST
            first = logs.index(leader)
            workers[first].kill()
            workers[first].wait(10)
            heir = logs[1 - first]
            until(lambda: said(heir, LEADS), "the other one leads", process=workers[1 - first])
            assert 0.8 * SLOTS <= n() <= MOST
            shown = fanout("endpoint", "log", "spark", "-n", "100", cwd=here, env=env)
            assert "requests queue for slots" in shown.stdout, shown.stderr
    until(lambda: not alive_in(here), "no process is left")
