"""Loading schemas, and holding replies against them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, ConfigDict, RootModel, field_validator

from fanout.errors import UsageError
from fanout.schemas import InvalidReply, OutputSchema, SchemaError, load_schema, parse_reply
from fanout.schemas.schema import sanitised

SCHEMA = {
    "title": "Posting",
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 1},
        "price": {"type": ["number", "null"], "minimum": 0},
        "kind": {"enum": ["sale", "rent"]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "rooms": {
            "type": "array",
            "items": {"type": "object", "properties": {"m2": {"type": "integer"}}},
        },
        "when": {"type": "string", "format": "date"},
        "zip": {"pattern": "^[0-9]{5}$"},
    },
    "required": ["title", "price"],
    "additionalProperties": False,
}


class Posting(BaseModel):
    title: str
    day: date | None = None

    @field_validator("title")
    @classmethod
    def no_shouting(cls, value: str) -> str:
        if value.isupper():
            raise ValueError("must not be all capitals")
        return value


class Node(BaseModel):
    name: str
    children: list[Node] = []


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, and the imports as they were afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def schema() -> OutputSchema:
    return OutputSchema.from_json_schema(SCHEMA)


def problems(schema: OutputSchema, value: object) -> tuple[str, ...]:
    with pytest.raises(InvalidReply) as caught:
        schema.validate(value)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_a_value_that_follows_the_schema_comes_back_as_it_is(schema: OutputSchema) -> None:
    value = {"title": "Flat", "price": 10, "when": "not checked", "zip": "12345"}
    assert schema.validate(value) is value
    assert schema.validate_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"title": 3}, "title: must be string, is 3"),
        ({"title": ""}, "title: needs at least 1 characters"),
        ({"price": "x"}, 'price: must be number or null, is "x"'),
        ({"price": -1}, "price: must be at least 0, is -1"),
        ({"kind": "lend"}, 'kind: must be one of ["sale","rent"], is "lend"'),
        ({"note": 3}, "note: must be string or null, is 3"),
        ({"rooms": [{"m2": 1}, {"m2": 1.5}]}, "rooms[1].m2: must be integer, is 1.5"),
        ({"rooms": {}}, "rooms: must be array, is an object"),
        ({"zip": "1"}, 'zip: "1" does not match ^[0-9]{5}$'),
        ({"a b": 1}, "the reply: Additional properties are not allowed ('a b' was unexpected)"),
    ],
)
def test_problems_are_told_with_their_path(
    schema: OutputSchema, change: dict[str, object], told: str
) -> None:
    assert problems(schema, {"title": "Flat", "price": 10} | change) == (told,)


def test_every_missing_field_is_named(schema: OutputSchema) -> None:
    assert problems(schema, {}) == (
        "the reply: 'title' is missing",
        "the reply: 'price' is missing",
    )


def test_a_key_that_is_no_name_is_quoted_in_the_path() -> None:
    odd = OutputSchema.from_json_schema(
        {"type": "object", "properties": {"a b": {"type": "integer"}}}
    )
    assert problems(odd, {"a b": "x"}) == ('["a b"]: must be integer, is "x"',)


def test_at_most_five_problems_are_told_and_none_at_length(schema: OutputSchema) -> None:
    rooms: list[object] = [{"m2": "y" * 10_000}] * 100
    told = problems(schema, {"title": "Flat", "price": 1, "rooms": rooms})
    assert len(told) == 5
    assert told[-1].endswith(" (and more)")
    assert all(len(line) < 200 for line in told)


def test_exactly_five_problems_are_not_said_to_be_more(schema: OutputSchema) -> None:
    told = problems(schema, {"title": "Flat", "price": 1, "rooms": [{"m2": "y"}] * 5})
    assert len(told) == 5
    assert "more" not in told[-1]


def test_a_value_at_the_top_that_is_no_object(schema: OutputSchema) -> None:
    assert problems(schema, [1]) == ("the reply: must be object, is an array",)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_cannot_write_are_refused(schema: OutputSchema, value: float) -> None:
    (told,) = problems(schema, {"title": "Flat", "price": value})
    assert "not a JSON number" in told


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        ' \n{"a": 1}\n ',
        '\ufeff{"a": 1}',
        '```json\n{"a": 1}\n```',
        '```JSON \r\n{"a": 1}\r\n```\n',
        '```\n{"a": 1}```',
        b'{"a": 1}',
    ],
)
def test_a_reply_may_be_fenced(text: str | bytes) -> None:
    assert parse_reply(text) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("```json\n\n```", "empty"),
        ('Here it is: {"a": 1}', "not JSON"),
        ('{"a": 1} Hope this helps', "not JSON"),
        ('{"a": 1', "not JSON"),
        ('{"a": NaN}', "not JSON"),
        ('{"a": Infinity}', "not JSON"),
        ('{"a": 1e999}', "not JSON"),
        ('{"a": "\\ud800"}', "not JSON"),
        ("{'a': 1}", "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 8"),
        ("[" * 100_000 + "]" * 100_000, "not JSON"),
    ],
)
def test_what_is_not_json_is_refused(text: str | bytes, told: str) -> None:
    with pytest.raises(InvalidReply, match=told) as caught:
        parse_reply(text)
    assert len(str(caught.value)) < 300


def test_a_reply_nested_deeper_than_the_stack_is_refused() -> None:
    nodes = OutputSchema.from_json_schema(Node.model_json_schema())
    depth = 480  # JSON levels: twice as many, which the parser still takes
    bomb = '{"name":"n","children":[' * depth + "]}" * depth
    with pytest.raises(InvalidReply, match="nested too deeply"):
        nodes.validate(orjson.loads(bomb))
    assert nodes.validate_json('{"name":"n","children":[{"name":"m"}]}')


@pytest.mark.parametrize(("levels", "taken"), [(100, True), (101, False), (900, False)])
def test_a_reply_nested_deeper_than_a_record_can_hold_is_refused(levels: int, taken: bool) -> None:
    reply = '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1)
    if taken:
        assert parse_reply(reply) == orjson.loads(reply)
        return
    with pytest.raises(InvalidReply, match="over 100 levels"):
        parse_reply(reply)


def test_a_schema_that_refers_to_itself_alone_is_no_crash() -> None:
    loop = {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"]}
    assert OutputSchema.from_json_schema(loop).validate({"a": 1}) == {"a": 1}
    with pytest.raises(InvalidReply, match="nested too deeply"):  # jsonschema goes round in it
        OutputSchema.from_json_schema(loop | {"required": ["b"]}).validate({"a": 1})


@pytest.mark.parametrize("pattern", [r"^(?>a+)b$", r"(?(1)a|b)", "(a", r"(a{1,1000}){1,1000}"])
def test_a_pattern_that_cannot_be_matched_in_bounded_time_is_refused(pattern: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    with pytest.raises(SchemaError, match=r"regular expression|valid JSON Schema"):
        OutputSchema.from_json_schema(schema)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(a+)+$",
        r"^(a|aa)+$",
        r"^(?!b)(a+)+$",  # looks ahead: a bounded number of steps
        r"^((a|aa)+)\1b$",  # looks back
    ],
)
@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"pattern": "?"}}},
        {"properties": {"a": {"anyOf": [{"pattern": "?"}, {"type": "null"}]}}},
        {"propertyNames": {"pattern": "?"}},
        {"patternProperties": {"?": {"type": "null"}}, "additionalProperties": False},
        {"patternProperties": {"?": True}, "unevaluatedProperties": False},
    ],
)
def test_no_pattern_holds_the_loop_up(pattern: str, schema: dict[str, Any]) -> None:
    # Python's own engine would not come back from any of these.
    text = orjson.dumps({"type": "object", **schema}).decode()
    filled = orjson.loads(text.replace('"?"', orjson.dumps(pattern).decode()))
    long = "a" * 500 + "!"
    began = time.process_time()
    with pytest.raises(InvalidReply):
        OutputSchema.from_json_schema(filled).validate({"a": long, long: 1})
    assert time.process_time() - began < 5  # some milliseconds; of the process, not of the clock


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"n_a": "x"}, "n_a: must be integer"),
        ({"n_a": 1, "other": 1}, "'other' was unexpected"),
        ({"code": "12"}, r'code: "12" does not match'),
    ],
)
def test_patterns_are_told_like_everything_else(value: dict[str, Any], words: str) -> None:
    schema = {
        "type": "object",
        "properties": {"code": {"type": "string", "pattern": r"^\d{3}$"}},
        "patternProperties": {"^n_": {"type": "integer"}},
        "additionalProperties": False,
    }
    compiled = OutputSchema.from_json_schema(schema)
    assert compiled.validate({"code": "123", "n_b": 4})
    with pytest.raises(InvalidReply, match=words):
        compiled.validate(value)


@pytest.mark.parametrize("value", ['{"n": 1e400}', '{"n": 123456789012345678901234567890}'])
def test_numbers_beyond_64_bits_are_judged_alike(value: str) -> None:
    small = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 5}}}
    with pytest.raises(InvalidReply):
        OutputSchema.from_json_schema(small).validate_json(value)


def test_the_digest_does_not_depend_on_the_order_of_keys(schema: OutputSchema) -> None:
    turned = OutputSchema.from_json_schema(dict(reversed(SCHEMA.items())))
    assert turned == schema
    assert len(schema.sha256) == 64
    assert OutputSchema.from_json_schema(SCHEMA | {"description": "x"}) != schema


def test_the_schema_is_a_copy() -> None:
    given = json.loads(json.dumps(SCHEMA))
    schema = OutputSchema.from_json_schema(given)
    given["required"].append("zip")
    assert schema.validate({"title": "Flat", "price": 1})


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("Posting", "Posting"),
        ("Job posting (v2)", "Job_posting_v2"),
        ("äö", "output"),
        ("", "output"),
    ],
)
def test_names_are_what_servers_take(name: str, clean: str) -> None:
    assert sanitised(name) == clean
    assert len(sanitised("x" * 100)) == 64


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ([], "must be a JSON object"),
        ({"type": "array"}, '"type": "object"'),
        ({}, '"type": "object"'),
        ({"$ref": "#"}, '"type": "object"'),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}, '"type": "object"'),
        ({"type": "objekt"}, "not a valid JSON Schema"),
        ({"type": "object", "properties": {"a": {"pattern": "["}}}, r"properties\.a\.pattern"),
        ({"type": "object", "properties": {"a": {"minimum": "1"}}}, r"properties\.a\.minimum"),
        ({"type": "object", "default": {1, 2}}, "cannot be written as JSON"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}, "does not hold"),
        (
            {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/a.json"}}},
            "nothing is fetched",
        ),
        ({"type": "object", "properties": {"a": {"$ref": "other.json#/A"}}}, "nothing is fetched"),
        (
            {"type": "object", "allOf": [{"$dynamicRef": "file:///etc/hosts"}]},
            "nothing is fetched",
        ),
    ],
)
def test_schemas_that_cannot_be_used(bad: object, told: str) -> None:
    with pytest.raises(SchemaError, match=told) as caught:
        OutputSchema.from_json_schema(bad)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UsageError)


def test_a_schema_nested_deeper_than_the_stack() -> None:
    deep: dict[str, object] = {"type": "object"}
    for _ in range(240):
        deep = {"type": "object", "properties": {"a": deep}}
    with pytest.raises(SchemaError):
        OutputSchema.from_json_schema(deep)


def test_a_ref_in_data_is_no_reference() -> None:
    data = {"type": "object", "default": {"$ref": "https://example.org/x.json"}}
    assert OutputSchema.from_json_schema(data).validate({}) == {}


def test_a_field_named_ref_is_no_reference() -> None:
    field = {"type": "object", "properties": {"$ref": {"type": "string"}}}
    assert OutputSchema.from_json_schema(field).validate({"$ref": "x"})


def test_a_model_adds_its_own_validators() -> None:
    schema = OutputSchema.from_model(Posting)
    assert schema.name == "Posting"
    assert schema.model is Posting
    value = {"title": "Flat", "day": "2024-05-01"}
    assert schema.validate(value) is value
    assert problems(schema, {"title": "FLAT"}) == ("title: Value error, must not be all capitals",)
    # The worker has the JSON Schema only, and the same name and digest.
    travelled = OutputSchema.from_json_schema(schema.json_schema, name=schema.name)
    assert travelled == schema
    assert travelled.model is None
    assert travelled.validate({"title": "FLAT"})


def test_a_strict_model_takes_what_json_can_say() -> None:
    class Day(BaseModel):
        model_config = ConfigDict(strict=True)
        day: date

    assert OutputSchema.from_model(Day).validate({"day": "2024-05-01"})


def test_a_recursive_model_has_an_object_behind_its_reference() -> None:
    schema = OutputSchema.from_model(Node)
    assert "$ref" in schema.json_schema
    assert problems(schema, {"name": "a", "children": [{"name": 1}]})[0].startswith(
        "children[0].name"
    )


def test_a_model_that_is_no_object() -> None:
    with pytest.raises(SchemaError, match="must ask for an object"):
        OutputSchema.from_model(RootModel[list[int]])


def test_load_a_json_file(here: Path) -> None:
    (here / "posting.json").write_text(json.dumps(SCHEMA))
    assert load_schema("posting.json") == OutputSchema.from_json_schema(SCHEMA)
    (here / "my schema.json").write_text('\ufeff{"type": "object"}')
    assert load_schema("my schema.json").name == "my_schema"


def test_load_a_model_of_a_module_here(here: Path) -> None:
    (here / "postings_here.py").write_text(
        "from pydantic import BaseModel\n"
        "class Posting(BaseModel):\n    title: str\n    class Inner(BaseModel):\n        a: int\n"
    )
    schema = load_schema("postings_here:Posting")
    assert schema.name == "Posting"
    assert schema.model is not None
    assert load_schema("postings_here:Posting.Inner").name == "Inner"
    assert sys.path[-1] == str(here)


def test_load_a_model_of_a_file(here: Path) -> None:
    # Annotations as strings, and an import of a neighbour: what a plain exec would not manage.
    (here / "sub").mkdir()
    (here / "sub" / "neighbour_x.py").write_text("WORD = 'x'\n")
    (here / "sub" / "json.py").write_text(
        "from __future__ import annotations\n"
        "from pydantic import BaseModel\nfrom neighbour_x import WORD\n"
        "class Part(BaseModel):\n    a: int\n"
        "class Whole(BaseModel):\n    parts: list[Part]\n    word: str = WORD\n"
    )
    schema = load_schema("sub/json.py:Whole")
    assert schema.validate({"parts": [{"a": 1}]})
    assert load_schema("sub/json.py:Whole").model is schema.model
    assert json.loads("1") == 1  # the file's name took nothing over


def test_a_module_here_does_not_shadow_an_installed_one(here: Path) -> None:
    (here / "fanout").mkdir()
    (here / "fanout" / "__init__.py").write_text("raise SystemExit('hostile')\n")
    with pytest.raises(SchemaError, match=r"wire.py\) has no Nothing"):
        load_schema("fanout.wire:Nothing")


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        ("Posting", "names no schema"),
        ("schema.yaml", "names no schema"),
        ("module:", "names no schema"),
        ("a/b:Model", "names no schema"),
        ("missing.json", "does not exist"),
        (".json", "cannot be read"),
        ("broken.json", "is not JSON"),
        ("deep.json", "is not JSON"),
        ("array.json", "array.json: the JSON Schema must ask for an object"),
        ("no_such_module_x:M", "no module no_such_module_x,"),
        ("raises_x:M", "importing raises_x failed: ZeroDivisionError"),
        ("exits_x:M", "importing exits_x failed: SystemExit: 3"),
        ("needs_x:M", "importing needs_x failed: ModuleNotFoundError: No module named 'absent_y'"),
        ("plain_x:Missing", r"plain_x \(.*plain_x.py\) has no Missing"),
        ("plain_x:Plain", "is not a pydantic model"),
        ("plain_x:number", "is not a pydantic model"),
        ("plain_x:Function", "Function has no JSON Schema"),
        ("missing.py:M", "does not exist"),
        ("raises_x.py:M", "importing raises_x.py failed"),
        ("syntax_x.py:M", "importing syntax_x.py failed: SyntaxError"),
    ],
)
def test_references_that_cannot_be_loaded(here: Path, ref: str, told: str) -> None:
    (here / ".json").mkdir()
    (here / "broken.json").write_text("{")
    (here / "deep.json").write_text("[" * 5000 + "]" * 5000)
    (here / "array.json").write_text('{"type": "array"}')
    (here / "raises_x.py").write_text("1 / 0\n")
    (here / "exits_x.py").write_text("raise SystemExit(3)\n")
    (here / "needs_x.py").write_text("import absent_y\n")
    (here / "syntax_x.py").write_text("def\n")
    (here / "plain_x.py").write_text(
        "from collections.abc import Callable\nfrom pydantic import BaseModel\n"
        "number = 3\nclass Plain: pass\n"
        "class Function(BaseModel):\n    f: Callable[[], int]\n"
    )
    with pytest.raises(SchemaError, match=told) as caught:
        load_schema(ref)
    assert "\n" not in str(caught.value)
