"""What anybody may have written into a queue ends there, and nothing else does."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fanout import Item
from fanout.keys import DEAD_LETTERS
from fanout.queue import message_of
from tests.integration.deadly import Deadly
from tests.integration.fleet import Fleet, fleet, wait_for
from tests.integration.servers import running_server

QUEUE = "fanout.default"
MUTANTS = 400
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**70, 1.5, float("nan"), float("inf"), "", "x", "\ud800", "9" * 400),
    *([], {}, [[]], {"x": 1}, ["a", {"b": None}], {"__type__": "uuid", "__value__": 5}),
    *("application/x-python-serialize", "application/x-yaml", "fanout.nobody", "fanout."),
)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Fleet]:
    # A long time: what comes again after it would be seen by nobody here.
    with running_server("valkey") as url, fleet(url, tmp_path, redeliver_after_s=300) as made:
        yield made


def real(number: int) -> dict[str, Any]:
    """The message of an item whose job nobody has."""
    item = Item(id=f"m{number}", payload={"text": f"mutant {number}"}, ordinal=number, job="nobody")
    message: dict[str, Any] = json.loads(message_of(item, "deadly", "default"))
    return message


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    found: list[tuple[Any, Any]] = []
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        found += [(value, key), *places(value[key])]
    return found


def changed(value: Any, chance: random.Random) -> None:
    """Change or remove something in a JSON value."""
    container, key = chance.choice(places(value))
    if isinstance(container, dict) and chance.random() < 0.2:
        del container[key]
    else:
        container[key] = chance.choice(VALUES)


def mutant(number: int, chance: random.Random) -> bytes:
    message = real(number)
    match chance.randrange(4):
        case 0:  # the envelope
            for _ in range(chance.randint(1, 3)):
                changed(message, chance)
        case 1:  # the body, as JSON
            body = json.loads(base64.b64decode(message["body"]))
            for _ in range(chance.randint(1, 3)):
                changed(body, chance)
            message["body"] = base64.b64encode(json.dumps(body).encode()).decode()
        case 2:  # the body, as bytes
            message["body"] = chance.choice(
                ["!", "AAAA", base64.b64encode(chance.randbytes(50)).decode(), "[[], {}, {}]"]
            )
        case 3:  # bytes of the whole
            raw = bytearray(json.dumps(message).encode())
            for _ in range(chance.randint(1, 4)):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            return bytes(raw[: chance.choice([len(raw), chance.randrange(len(raw))])])
    return json.dumps(message).encode()


def test_no_mutation_of_a_message_does_any_harm(one: Fleet) -> None:
    chance = random.Random(1)
    worker = one.worker()
    mutants = [mutant(number, chance) for number in range(MUTANTS)]

    def insert() -> None:
        for raw in mutants:
            one.redis.lpush(QUEUE, raw)

    records = one.run([f"good {number}" for number in range(100)], insert)
    assert [record.status for record in records] == ["ok"] * 100
    wait_for(one.idle, "all to end", worker)
    assert worker.exits == []
    assert set(one.model.asked.values()) == {1}
    # Many are still good enough to be items, whose job nobody knows.
    assert MUTANTS / 4 < one.redis.xlen(DEAD_LETTERS) < MUTANTS
    # Nothing of what they hold is written into the log.
    assert "mutant" not in worker.output


def test_what_is_not_for_this_worker_ends_with_a_reason(one: Fleet) -> None:
    worker = one.worker()
    strange = real(0)
    strange["headers"]["task"] = "somebody.elses"
    binary = real(1) | {"content-type": "application/x-python-serialize"}
    for message in (strange, binary, {**real(2), "headers": {}}):
        one.redis.lpush(QUEUE, json.dumps(message))
    wait_for(lambda: one.redis.xlen(DEAD_LETTERS) == 3, "three dead letters", worker)
    reasons = [letter[b"reason"] for _, letter in one.redis.xrange(DEAD_LETTERS)]
    assert reasons == [
        b"there is no task 'somebody.elses'",
        b"it is no valid task: ContentDisallowed",
        b"it is no task of Celery's",
    ]
    wait_for(one.idle, "all to end", worker)


class Nowhere(Deadly):
    """A kind that no worker has."""

    name = "nowhere"


def test_items_of_a_kind_that_the_worker_does_not_have_fail(one: Fleet) -> None:
    worker = one.worker()
    records = one.run(["a", "b"], kind=Nowhere)
    assert [record.status for record in records] == ["failed"] * 2
    assert {record.error and record.error.message for record in records} == {
        "this worker has no task kind 'nowhere'"
    }
    wait_for(one.idle, "the acknowledgements", worker)
    assert one.redis.xlen(DEAD_LETTERS) == 0
