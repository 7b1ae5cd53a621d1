"""What a queue holds is read as kombu reads it."""

from __future__ import annotations

from typing import Any

import pytest
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.utils.json import dumps

from fanout_workers.transport.message import Message, read_envelope


class FakeChannel:
    def decode_body(self, body: Any, encoding: Any) -> Any:
        return body


def message(body: bytes, **fields: Any) -> Message:
    raw = {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "properties": {"delivery_tag": "t"},
        **fields,
    }
    made = Message(raw, channel=FakeChannel())
    made.accept = {"application/json"}
    return made


def test_values_that_json_does_not_know_come_back() -> None:
    import datetime

    day = datetime.date(2026, 1, 2)
    assert message(dumps([[day], {}, {}]).encode()).payload == [[day], {}, {}]
    assert read_envelope(dumps({"headers": {"day": day}}).encode()) == {"headers": {"day": day}}


def test_integers_of_any_size_stay_exact() -> None:
    assert message(b'[[], {"n": 123456789012345678901}, {}]').payload == [
        [],
        {"n": 123456789012345678901},
        {},
    ]


def test_what_is_not_accepted_is_refused() -> None:
    refused = message(b"[]")
    refused.accept = {"application/x-yaml"}
    with pytest.raises(ContentDisallowed):
        refused.decode()


@pytest.mark.parametrize("body", [b"[1", b"\xff"])
def test_what_cannot_be_read_fails_as_it_does_in_kombu(body: bytes) -> None:
    with pytest.raises(DecodeError):
        message(body).decode()


def test_other_formats_are_left_to_kombu() -> None:
    assert message(b"text", **{"content-type": "text/plain"}, headers={}).errors == []
    other = message("ä".encode("latin-1"), **{"content-type": "text/plain"})
    other.content_encoding, other.accept = "latin-1", {"text/plain"}
    assert other.payload == "ä"


def test_an_envelope_may_hold_what_kombu_writes() -> None:
    assert read_envelope(b'{"headers": {"n": Infinity}}') == {"headers": {"n": float("inf")}}
    with pytest.raises(ValueError):
        read_envelope(b"no message")
