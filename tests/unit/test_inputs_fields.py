"""Telling text, id and the other fields of a row apart; keeping ids unique."""

from __future__ import annotations

import random

import pytest

from fanout.inputs.document import InputError, RowError
from fanout.inputs.fields import Fields
from fanout.inputs.ids import HashSet, Ids


@pytest.mark.parametrize(
    ("row", "text", "own_id", "meta"),
    [
        ("bare", "bare", None, {}),
        ({"text": "t"}, "t", None, {}),
        ({"text": "t", "id": "a"}, "t", "a", {}),
        ({"text": "t", "id": 7}, "t", "7", {}),
        ({"id": 0, "content": "c"}, "c", "0", {}),
        ({"body": "b", "content": "c"}, "c", None, {"body": "b"}),
        ({"document": "d", "description": "x"}, "d", None, {"description": "x"}),
        ({"review": "r", "stars": 3}, "r", None, {"stars": 3}),
        ({"review": "r", "id": "a"}, "r", "a", {}),
        # An id of another type is no id, and stays where it can be seen.
        ({"text": "t", "id": None}, "t", None, {"id": None}),
        ({"text": "t", "id": True}, "t", None, {"id": True}),
        ({"text": "t", "id": 1.5}, "t", None, {"id": 1.5}),
        ({"text": "t", "id": " "}, "t", None, {"id": " "}),
    ],
)
def test_without_names_the_row_is_asked(
    row: object, text: str, own_id: str | None, meta: dict[str, object]
) -> None:
    assert Fields().split(row) == (text, own_id, meta)


def test_named_fields() -> None:
    row = {"text": "t", "summary": "s", "id": 1, "key": 2}
    assert Fields("summary", "key").split(row) == ("s", "2", {"text": "t", "id": 1})


@pytest.mark.parametrize(
    ("fields", "row", "told"),
    [
        (Fields(), 3, "the row is a number, not an object"),
        (Fields(), None, "the row is null, not an object"),
        (Fields(), ["a"], "the row is an array, not an object"),
        (Fields(), True, "the row is a boolean, not an object"),
        (Fields(), {}, "there is no field 'text' or 'content' or .* only no fields"),
        (Fields(), {"a": "x", "b": "y"}, "not exactly one string, only 'a', 'b'"),
        (Fields(), {"id": "x"}, "there is no field 'text'"),
        (Fields(), {"text": None}, "field 'text' is null, not a string"),
        (Fields(), {"text": 3, "content": "c"}, "field 'text' is a number"),
        (Fields(), {"text": ""}, "field 'text' is blank"),
        (Fields(), {"text": " \n\u2003"}, "field 'text' is blank"),
        (Fields(), {"text": "a\0b"}, "NUL"),
        (Fields(), "", "the text is blank"),
        (Fields("body"), {"text": "t"}, "there is no field 'body', only 'text'"),
        (Fields(id="key"), {"text": "t"}, "there is no field 'key' for the id"),
        (Fields(id="key"), {"text": "t", "key": None}, "the id, is null"),
        (Fields(id="key"), {"text": "t", "key": " "}, "the id, is blank"),
        (Fields(id="key"), {"text": "t", "key": True}, "the id, is a boolean"),
    ],
)
def test_rows_that_are_no_documents(fields: Fields, row: object, told: str) -> None:
    with pytest.raises(RowError, match=told):
        fields.split(row)


def test_many_fields_are_not_all_listed() -> None:
    with pytest.raises(RowError, match=r"'f7' and 92 more$"):
        Fields().split({f"f{n}": n for n in range(100)})


def test_a_table_settles_its_fields_once() -> None:
    assert Fields().of_table(["id", "review"], ["id", "review"], "x") == Fields("review")
    assert Fields().of_table(["a", "body"], ["a", "body"], "x") == Fields("body")
    assert Fields("a", "b").of_table(["a", "b"], [], "x") == Fields("a", "b")
    for fields in (Fields("no"), Fields("a", "no"), Fields()):
        with pytest.raises(InputError, match=r"^x\.csv has no column .*'a', 'b'"):
            fields.of_table(["a", "b"], ["a", "b"], "x.csv")


def test_the_hash_set_agrees_with_a_set() -> None:
    numbers = random.Random(1)
    ours, theirs = HashSet(), {1}
    assert ours.add(0)  # 0 stands for a free slot, so it counts as 1
    for _ in range(5000):
        value = numbers.choice([numbers.randrange(1, 3000), numbers.getrandbits(64) | 1])
        assert ours.add(value) == (value not in theirs)
        theirs.add(value)
    assert len(ours) == len(theirs)


def test_ids_we_make_give_way_and_given_ids_do_not() -> None:
    ids = Ids()
    assert ids.claim("docs.jsonl:2")
    assert not ids.claim("docs.jsonl:2")
    assert [ids.fresh("docs.jsonl:2") for _ in range(2)] == ["docs.jsonl:2#2", "docs.jsonl:2#3"]
    assert ids.fresh("docs.jsonl:3") == "docs.jsonl:3"
