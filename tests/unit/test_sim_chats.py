"""Requests of the simulator at the moments at which two things happen at once."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from fanout.sim import chats as module
from fanout.sim.chats import Chats
from fanout.sim.options import Options

pytestmark = pytest.mark.anyio


class Exchange:
    """A request without a connection, and what was replied to it."""

    too_large = False

    def __init__(self, name: str) -> None:
        self.request_id = name
        self.data: Any = None
        self.body = json.dumps({"messages": [{"role": "user", "content": name}], "max_tokens": 4})
        self.replied: list[int] = []

    def reply(self, status: int, body: bytes) -> None:
        self.replied.append(status)


async def test_a_client_that_leaves_as_its_reply_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    chats = Chats(Options())
    leaves, stays = Exchange("leaves"), Exchange("stays")
    for exchange in (leaves, stays):
        chats.arrived(exchange)  # type: ignore[arg-type]
        chats.take(exchange)  # type: ignore[arg-type]
    now += 3600  # both are finished, and nobody has looked yet
    chats.gone(leaves)  # type: ignore[arg-type]
    assert (leaves.replied, stays.replied) == ([], [200])
    chats.close()
