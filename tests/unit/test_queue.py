"""An item's message; that it is Celery's own form is held by tests/integration."""

from __future__ import annotations

import base64
import uuid

import orjson
import pytest

from fanout.queue import RESUBMITTED, message_of, queue_of, task_id, task_name
from fanout.wire import Item

ITEM = Item(
    id="a.txt", payload={"text": "top secret"}, ordinal=3, job="j", submitted_at=1700000000.5
)


def test_names() -> None:
    assert (queue_of("heavy"), task_name("extract")) == ("fanout.heavy", "fanout.extract")


def test_the_task_id_is_the_same_wherever_it_is_made() -> None:
    assert task_id("j", 3) == "09102317-8e4a-55a8-9644-22a1b1b6478a"
    assert len({task_id(job, n) for job in ("j", "k") for n in range(100)}) == 200


def test_the_ids_are_uuids() -> None:
    for ordinal in range(64):
        message = orjson.loads(message_of(ITEM.model_copy(update={"ordinal": ordinal}), "k", "t"))
        assert uuid.UUID(message["headers"]["id"]).version == 5
        assert uuid.UUID(message["headers"]["id"]).variant == uuid.RFC_4122
        assert uuid.UUID(message["properties"]["delivery_tag"]).version == 4


def test_names_of_any_characters_stay_what_they_are() -> None:
    item = ITEM.model_copy(update={"id": 'a"%(id)b\\\n', "job": "100%"})
    message = orjson.loads(message_of(item, "my%s:Kind", 'tier "%d"'))
    assert message["headers"]["task"] == task_name("my%s:Kind")
    assert message["properties"]["delivery_info"]["routing_key"] == queue_of('tier "%d"')
    assert message["headers"]["kwargsrepr"] == repr({"id": item.id, "job": item.job})
    ids = {message["headers"][name] for name in ("id", "root_id")}
    assert ids == {message["properties"]["correlation_id"], task_id("100%", 3)}


def test_the_body_holds_the_item() -> None:
    message = orjson.loads(message_of(ITEM, "extract", "heavy"))
    args, kwargs, embed = orjson.loads(base64.b64decode(message["body"]))
    assert (args, set(embed.values())) == ([], {None})
    assert Item.model_validate(kwargs) == ITEM
    assert set(kwargs) == {"id", "payload", "ordinal", "job", "submitted_at"}


def test_the_document_is_in_the_body_alone() -> None:
    message = orjson.loads(message_of(ITEM, "extract", "heavy"))
    del message["body"]
    assert b"secret" not in orjson.dumps(message)


@pytest.mark.parametrize("results", [False, True])
def test_results_are_kept_on_demand(results: bool) -> None:
    message = orjson.loads(message_of(ITEM, "extract", "heavy", results=results))
    assert message["headers"]["ignore_result"] is not results


def test_a_message_that_was_sent_again_says_so() -> None:
    plain, marked = (
        orjson.loads(message_of(ITEM, "extract", "heavy", resubmitted=again))["headers"]
        for again in (False, True)
    )
    assert marked == {**plain, RESUBMITTED: True}


def test_each_message_has_a_tag_of_its_own() -> None:
    tags = {
        orjson.loads(message_of(ITEM, "extract", "heavy"))["properties"]["delivery_tag"]
        for _ in range(10)
    }
    assert len(tags) == 10


@pytest.mark.parametrize("change", [{"job": None}, {"ordinal": None}])
def test_only_an_item_of_a_job_can_be_queued_so(change: dict[str, None]) -> None:
    with pytest.raises(ValueError, match="only an item of a job"):
        message_of(ITEM.model_copy(update=change), "extract", "heavy")
