"""What the simulator answers: lengths, reasoning, schemas, faults."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator

from fanout.errors import UsageError
from fanout.sim import QueueFull, Work
from fanout.sim.answers import Answer, Answers, Refused
from fanout.sim.bodies import Stream
from fanout.sim.curves import MOE
from fanout.sim.delays import Delays
from fanout.sim.faults import KINDS, Faults
from fanout.sim.instances import Instances
from fanout.sim.lengths import parse_distribution
from fanout.sim.text import prompt_tokens, prose, tokens_in

HELLO = [{"role": "user", "content": "hello there"}]
POSTING = {
    "$defs": {"Skill": {"type": "object", "properties": {"name": {"type": "string"}}}},
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "skills": {"type": "array", "items": {"$ref": "#/$defs/Skill"}},
    },
    "required": ["title", "skills"],
    "additionalProperties": False,
}


def answer(lengths: str | None = None, effort: str | None = None, **body: Any) -> Answer:
    drawn = None if lengths is None else parse_distribution(lengths)
    return Answers(MOE, drawn, effort, seed=1).answer({"messages": HELLO, **body})


def json_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}


def test_the_request_bounds_the_answer() -> None:
    assert answer(max_tokens=50).tokens == 50
    assert answer(max_tokens=50).finish_reason == "stop"
    assert answer("fixed:30", max_tokens=50).tokens == 30
    cut = answer("fixed:80", max_tokens=50)
    assert (cut.tokens, cut.finish_reason) == (50, "length")
    assert answer("80", max_completion_tokens=60, max_tokens=50).tokens == 60
    assert answer("80").tokens == 80
    assert answer().tokens == MOE.output_tokens


def test_ignore_eos_and_min_tokens() -> None:
    whole = answer("10", max_tokens=50, ignore_eos=True)
    assert (whole.tokens, whole.finish_reason) == (50, "length")
    assert answer("10", max_tokens=50, min_tokens=40).tokens == 40


def test_text_is_as_long_as_its_tokens() -> None:
    said = answer("25", max_tokens=50)
    content = said.content()
    assert content is not None
    assert tokens_in(content) == 25
    assert prompt_tokens(HELLO) == 4 + 3
    assert prompt_tokens([{"content": [{"type": "text", "text": "12345678"}]}]) == 4 + 2


@pytest.mark.parametrize("characters", [0, 1, 7, 5000, 100_000])
def test_prose_has_exactly_the_length_asked_for(characters: int) -> None:
    for offset in range(0, 300, 7):
        text = prose(characters, offset)
        assert len(text) == characters
        assert orjson.dumps(text).decode() == f'"{text}"'
        assert text == text.strip()


def test_reasoning_shares_the_budget() -> None:
    plain = answer(max_tokens=1000)
    assert plain.reasoning_tokens == 0
    low = answer("100", reasoning_effort="low", max_tokens=1000)
    assert 0 < low.reasoning_tokens < 200
    assert low.tokens == low.reasoning_tokens + 100
    high = answer("100", "high", max_tokens=300)
    assert (high.reasoning_tokens, high.content(), high.finish_reason) == (300, None, "length")
    assert tokens_in(high.reasoning() or "") == 300
    assert answer("100", "high", max_tokens=300, include_reasoning=False).reasoning() is None
    assert answer("100", "high", reasoning_effort="none").reasoning_tokens == 0


def test_the_mean_of_the_reasoning_is_the_profiles() -> None:
    answers = Answers(MOE, parse_distribution("10"), None, seed=3)
    body = {"messages": HELLO, "reasoning_effort": "medium"}
    drawn = [answers.answer(body).reasoning_tokens for _ in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(dict(MOE.reasoning_tokens)["medium"], rel=0.05)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": "hello"},
        {"max_tokens": 0},
        {"max_tokens": "many"},
        {"max_tokens": MOE.max_model_len},
        {"messages": [{"content": "x" * 5 * MOE.max_model_len}]},
        {"reasoning_effort": "colossal"},
        {"n": 2},
        {"response_format": json_schema({"type": "nothing"})},
        {"response_format": json_schema({"allOf": [{"minimum": 5}, {"maximum": 1}]})},
        {"response_format": {"type": "json_schema"}},
    ],
)
def test_what_vllm_would_refuse(body: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refusal:
        answer(**body)
    assert refusal.value.status == 400


def test_answers_follow_the_schema_and_the_drawn_length() -> None:
    answers = Answers(MOE, parse_distribution("uniform:20,400"), None, seed=5)
    body = {"messages": HELLO, "response_format": json_schema(POSTING), "max_tokens": 1000}
    seen = set()
    for _ in range(100):
        said = answers.answer(body)
        content = said.content()
        assert content is not None
        Draft202012Validator(POSTING).validate(orjson.loads(content))
        assert tokens_in(content) == said.content_tokens
        assert said.finish_reason == "stop"
        seen.add(content)
    assert len(seen) > 50


def test_an_answer_that_does_not_fit_is_cut() -> None:
    said = answer("300", response_format=json_schema(POSTING), max_tokens=40)
    content = said.content()
    assert content is not None
    assert (said.finish_reason, len(content)) == ("length", 160)
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(content)


def test_a_short_schema_gives_a_short_answer() -> None:
    said = answer("300", response_format=json_schema({"type": "boolean"}), max_tokens=400)
    assert said.content() in ("true", "false")
    assert said.tokens <= 2


def test_structured_outputs() -> None:
    assert answer(structured_outputs={"choice": ["yes", "no"]}).content() in ("yes", "no")
    said = answer(structured_outputs={"regex": "[a-f]{4}"}).content()
    assert re.fullmatch("[a-f]{4}", said or "")
    for form in (
        {"json": POSTING},
        {"json": orjson.dumps(POSTING).decode()},
        {"json_object": True},
    ):
        content = answer(structured_outputs=form, max_tokens=100).content()
        assert isinstance(orjson.loads(content or ""), dict)
    content = answer(response_format={"type": "json_object"}, max_tokens=100).content()
    assert isinstance(orjson.loads(content or ""), dict)


SCHEMAS: dict[str, Any] = {
    "anything": True,
    "scalar types": {
        "properties": {
            "a": {"type": "integer", "minimum": 3, "maximum": 5},
            "b": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            "c": {"type": "boolean"},
            "d": {"type": "null"},
            "e": {"type": "integer", "multipleOf": 7, "minimum": 10},
            "f": {"type": "integer", "exclusiveMaximum": -4},
            "g": {"const": {"x": [1]}},
            "h": {"enum": ["p", 3, None]},
        },
        "required": list("abcdefgh"),
    },
    "strings": {
        "properties": {
            "short": {"type": "string", "maxLength": 3},
            "exact": {"type": "string", "minLength": 40, "maxLength": 40},
            "pattern": {"type": "string", "pattern": "^[A-Z]{2}-\\d{4}$"},
            "bounded": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 12},
            "date": {"type": "string", "format": "date"},
            "time": {"type": "string", "format": "date-time"},
            "mail": {"type": "string", "format": "email"},
            "id": {"type": "string", "format": "uuid"},
            "free": {"type": "string"},
        },
        "required": ["short", "exact", "pattern", "bounded", "date", "time", "mail", "id", "free"],
    },
    "arrays": {
        "properties": {
            "some": {"type": "array", "items": {"type": "string"}, "minItems": 6, "maxItems": 7},
            "unique": {"type": "array", "uniqueItems": True, "items": {"enum": [1, 2, 3]}},
            "texts": {
                "type": "array",
                "uniqueItems": True,
                "minItems": 4,
                "items": {"type": "string"},
            },
            "pair": {
                "type": "array",
                "prefixItems": [{"type": "string"}, {"type": "integer"}],
                "items": False,
                "minItems": 2,
            },
        },
        "required": ["some", "unique", "texts", "pair"],
    },
    "choices": {
        "anyOf": [{"type": "null"}, {"type": "string", "maxLength": 9}, {"$ref": "#/$defs/n"}],
        "$defs": {"n": {"oneOf": [{"type": "integer"}, {"type": "array", "maxItems": 2}]}},
    },
    "optional string of pydantic": {
        "type": "object",
        "properties": {"pay": {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None}},
    },
    "all of": {
        "allOf": [
            {"properties": {"a": {"type": "string", "minLength": 2}}, "required": ["a"]},
            {"properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ],
        "type": "object",
    },
    "recursive": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["name", "next"],
            }
        },
    },
    "a map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 3},
    "type list": {"type": ["string", "null"]},
    "names with signs": {"properties": {"a/b~c": {"$ref": "#/$defs/a~1b"}}, "$defs": {"a/b": {}}},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_instances_are_valid_at_any_length(name: str) -> None:
    schema = SCHEMAS[name]
    check = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    instances = Instances(schema)
    for variant in range(20):
        for characters in (0, 40, 200, 1600):
            text = instances.render(variant, characters)
            check.validate(orjson.loads(text))
            assert len(text) == instances.length(variant, characters)
            assert text == instances.render(variant, characters)


def test_an_open_string_takes_whatever_length_is_left() -> None:
    instances = Instances(POSTING)
    for characters in range(400, 2000, 113):
        # Integer division may leave a character or two to nobody.
        assert instances.length(0, characters) == characters
        assert len(instances.render(0, characters)) == characters


def test_instances_of_a_schema_that_cannot_be_followed() -> None:
    for schema in (
        {"type": "wrong"},
        {"$ref": "https://example.org/schema"},
        {"$ref": "#/$defs/none"},
        {"enum": []},
        False,
        {"type": "string", "minLength": 5, "maxLength": 2},
    ):
        with pytest.raises(UsageError):
            Instances(schema)


@pytest.mark.parametrize("lengths", ["400", "fixed:400", "lognormal:300,0.6", "uniform:0,10"])
def test_distributions_have_their_mean(lengths: str) -> None:
    drawn = parse_distribution(lengths)
    dice = random.Random(1)
    values = [drawn.draw(dice) for _ in range(20_000)]
    assert min(values) >= 0
    assert sum(values) / len(values) == pytest.approx(drawn.mean(), rel=0.03)


def test_an_exponential_has_its_mean() -> None:
    drawn = parse_distribution("exponential:3")
    dice = random.Random(2)
    assert sum(drawn.draw(dice) for _ in range(20_000)) / 20_000 == pytest.approx(3, rel=0.03)


@pytest.mark.parametrize(
    "text", ["", "many", "fixed", "fixed:", "fixed:-1", "lognormal:3", "uniform:5,1", "fixed:inf"]
)
def test_no_distribution(text: str) -> None:
    with pytest.raises(UsageError, match="distribution"):
        parse_distribution(text)


def test_faults_at_their_rates() -> None:
    faults = Faults(rates={"error": 0.1, "null": 0.3})
    dice = random.Random(1)
    drawn = [faults.draw(dice) for _ in range(20_000)]
    assert drawn.count("error") / 20_000 == pytest.approx(0.1, abs=0.01)
    assert drawn.count("null") / 20_000 == pytest.approx(0.3, abs=0.01)
    assert set(drawn) == {"error", "null", None}
    assert {Faults(rates={kind: 1.0}).draw(dice) for kind in KINDS} == set(KINDS)
    assert Faults().draw(dice) is None


def test_outages_have_a_beginning_and_an_end() -> None:
    faults = Faults(outages=((10, 5),))
    assert [faults.out(at) for at in (9.9, 10, 14.9, 15)] == [False, True, True, False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rates": {"nothing": 0.1}},
        {"rates": {"error": 0.7, "null": 0.7}},
        {"rates": {"error": -0.1}},
        {"status": 200},
    ],
)
def test_impossible_faults(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Faults(**wrong)


def test_a_stream_in_pieces_is_the_answer() -> None:
    said = answer("100", "low", max_tokens=400)
    for step in (1, 7, 1000):
        stream = Stream("chatcmpl-1", "m", 0, said)
        raw = stream.opening()
        for upto in range(step, said.tokens + step, step):
            raw += stream.upto(min(upto, said.tokens), 4)
        raw += stream.closing("stop", {"completion_tokens": said.tokens}, {"queue_time_ms": 1.0})
        lines = [line[6:] for line in raw.split(b"\n\n") if line]
        assert lines[-1] == b"[DONE]"
        events = [orjson.loads(line) for line in lines[:-1]]
        deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
        assert "".join(delta.get("content", "") for delta in deltas) == said.content()
        assert "".join(delta.get("reasoning", "") for delta in deltas) == said.reasoning()
        assert events[-2]["choices"][0]["finish_reason"] == "stop"
        assert events[-1]["usage"] == {"completion_tokens": said.tokens}


def test_delays_hold_what_they_are_given() -> None:
    delays = Delays(parse_distribution("2"), max_num_seqs=2, queue_limit=3)
    works = [Work(name, 10, 100) for name in "abcd"]
    first = delays.add(0.0, works[0])
    second = delays.add(0.5, works[1])
    third = delays.add(0.5, works[2])
    with pytest.raises(QueueFull):
        delays.add(0.5, works[3])
    gauges = delays.gauges(1.0)
    assert (gauges.running, gauges.waiting) == (2, 1)
    assert delays.generated(first, 1.0) == 50
    assert delays.next_at() == 2.0
    assert delays.advance(2.0) == [first]
    assert third.admitted_at == 2.0
    assert delays.abort(2.1, second)
    assert not delays.abort(2.1, second)
    assert delays.next_at() == 4.0
    assert delays.advance(9.0) == [third]
    assert third.ended_at == 4.0
    assert delays.next_at() is None
    gauges = delays.gauges(9.0)
    assert (gauges.running, gauges.waiting) == (0, 0)
    assert gauges.generation_tokens == 200 + 80
    assert gauges.finished == {"stop": 2, "length": 0, "abort": 1}


def test_delays_of_nothing_end_at_once() -> None:
    delays = Delays(parse_distribution("0"))
    one = delays.add(1.0, Work("one", 0, 1))
    assert delays.next_at() == 1.0
    assert delays.advance(1.0) == [one]


def test_a_profile_without_reasoning_does_not_reason() -> None:
    plain = replace(MOE, reasoning_tokens=())
    said = Answers(plain, None, None, 0).answer({"messages": HELLO, "reasoning_effort": "high"})
    assert said.reasoning_tokens == 0
