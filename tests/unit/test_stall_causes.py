"""From what is seen of a silent job to the cause in words; no I/O."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fanout.server_metrics import ServerLoad
from fanout.stall.sight import Cause, ServerSight, Sight, diagnose
from fanout.store import WorkerInfo

WELL = WorkerInfo("w1@a", "heavy", {"spark": 0}, {"spark": 8}, ("extract",))
BUSY = replace(WELL, in_flight={"spark": 8})
SPARK = ServerSight("spark", 8, {"w1@a/1f": 8})
SIGHT = Sight(
    tier="heavy", kind="extract", quiet_s=60.0, open=12, workers=[WELL], endpoints=[SPARK]
)


def cause(**changes: object) -> Cause:
    return diagnose(replace(SIGHT, **changes))  # type: ignore[arg-type]


def spark(**changes: object) -> list[ServerSight]:
    return [replace(SPARK, **changes)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"output_s": 45.0, "output_records": 37}, "output", "the last 37 records in 0:45"),
        ({"redis": "Redis at x does not answer"}, "redis", "Redis at x does not answer"),
        ({"state": None}, "job", "does not know the job"),
        ({"state": "paused"}, "job", "paused from elsewhere"),
        ({"workers": []}, "worker", "no worker of tier heavy has reported: start one"),
        (
            {"workers": [], "silent": {"w1@a": 35.0}},
            "worker",
            "nothing has been heard of worker w1@a for at least 0:35",
        ),
        ({"workers": [replace(WELL, kinds=("review",))]}, "kind", "task kind 'extract'"),
        (
            {"workers": [replace(WELL, problems={"spark": "http://s does not answer"})]},
            "endpoint",
            "endpoint spark: http://s does not answer",
        ),
        ({"endpoints": spark(n=0)}, "quota", "N of endpoint spark is 0"),
        (
            {"endpoints": spark(parts={}, ghosts={"w0@b/7": 8})},
            "held",
            "may have left at the server: w0@b/7 8",
        ),
        (
            {"endpoints": spark(parts={"w9@c/1": 5, "w8@c/2": 3})},
            "held",
            "N is held by others: w9@c/1 5, w8@c/2 3",
        ),
        ({"silent": {"w2@b": 35.0}}, "worker", "worker w2@b for at least 0:35: it has ended"),
        ({"queued": 1204}, "queue", "w1@a says it is well but takes nothing from the queue"),
    ],
)
def test_a_cause_that_leaves_nothing_to_wait_for(
    changes: dict[str, object], where: str, words: str
) -> None:
    found = cause(**changes)
    assert (found.where, found.certain) == (where, True)
    assert words in found.words


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"queued": 7, "moved": True}, "queue", "7 messages wait"),
        ({}, "lost", "neither in the queue nor in flight"),
        (
            {"workers": [BUSY], "others": {"j2": 500}},
            "others",
            "other jobs of tier heavy get on meanwhile, with items open: j2 500",
        ),
        (
            {"workers": [BUSY], "endpoints": spark(load=ServerLoad(8.0), tokens_per_s=12.345)},
            "server",
            "endpoint spark runs 8 requests and makes 12.3 tokens/s for all of them",
        ),
        (
            {"workers": [BUSY], "endpoints": spark(load=ServerLoad(8.0), tokenless_s=40.0)},
            "server",
            "has made no token for 0:40",
        ),
        ({"workers": [BUSY]}, "server", "8 requests are in flight at spark, and none has ended"),
    ],
)
def test_a_cause_that_may_be_slow_work(changes: dict[str, object], where: str, words: str) -> None:
    found = cause(**changes)
    assert (found.where, found.certain) == (where, False)
    assert words in found.words


def test_a_server_without_a_token_for_long_hangs_for_sure() -> None:
    hanging = spark(load=ServerLoad(8.0), tokenless_s=61.0)
    assert cause(workers=[BUSY], endpoints=hanging).certain
    assert not cause(workers=[BUSY], endpoints=hanging, least_s=60.0).certain


def test_an_idle_server_is_not_blamed_by_its_page() -> None:
    idle = spark(load=ServerLoad(0.0), tokenless_s=500.0)
    assert cause(workers=[BUSY], endpoints=idle).words.startswith("8 requests are in flight")


def test_what_is_nearer_to_the_output_hides_the_rest() -> None:
    everything: dict[str, object] = {
        "output_s": 45.0, "output_records": 1, "redis": "away", "state": "paused", "workers": [],
    }  # fmt: skip
    found = []
    for name, well in (
        ("output_s", 0.0), ("redis", ""), ("state", "open"), ("workers", [WELL]),
    ):  # fmt: skip
        found.append(cause(**everything).where)
        everything[name] = well
    assert found == ["output", "redis", "job", "worker"]


def test_a_worker_that_reaches_an_endpoint_outweighs_one_that_does_not() -> None:
    lost = replace(WELL, name="w2@b", problems={"spark": "no route"})
    assert cause(workers=[WELL, lost]).where == "lost"
    two = replace(WELL, capacity={"spark": 8, "orin": 4}, problems={"spark": "no route"})
    assert cause(workers=[two]).where == "lost"
    both = replace(two, problems={"spark": "no route", "orin": "refused"})
    assert cause(workers=[both]).words == "endpoint spark: no route (and 1 more)"


def test_a_batch_that_the_output_has_just_got_is_no_cause() -> None:
    assert cause(output_s=5.0, output_records=3).where == "lost"


def test_many_names_are_cut() -> None:
    parts = {f"w{n}@c/1": n for n in range(1, 6)}
    assert cause(endpoints=spark(parts=parts)).words.endswith("w3@c/1 3 and 2 more")
