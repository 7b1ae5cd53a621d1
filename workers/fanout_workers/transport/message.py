"""Reading what a queue holds: kombu's JSON, without its detours for what is not there."""

from __future__ import annotations

import json
from typing import Any

import orjson
from kombu.transport import virtual
from kombu.utils.json import loads

#: How kombu marks a value that JSON does not know. Looking for it makes the reading slow.
_MARK = b'"__type__"'
_JSON = "application/json"


def read_envelope(raw: bytes) -> Any:
    """A message as it lies in its queue; its body, in Base64, stays as it is.

    Raises:
        ValueError: it is not JSON.
    """
    if _MARK in raw:
        return loads(raw)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return json.loads(raw.decode())  # it takes NaN, which kombu writes


class Message(virtual.Message):
    """kombu's message, its body read by Python's own parser where that gives the same."""

    accept: Any
    body: Any
    content_encoding: Any
    content_type: Any

    def _decode(self) -> Any:
        body = self.body
        if (
            self.content_type != _JSON
            or self.content_encoding != "utf-8"
            or _JSON not in (self.accept or ())
            or not isinstance(body, bytes)
            or _MARK in body
        ):
            return super()._decode()
        try:
            # Not orjson: it turns an integer of more than 64 bits into a float.
            return json.loads(body.decode())
        except ValueError:
            return super()._decode()  # for its error
