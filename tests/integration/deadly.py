"""A task kind whose payload says how it misbehaves, for workers that have to live with it."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from typing import Any

from kombu.asynchronous import get_event_loop
from pydantic import BaseModel

from fanout import ChatRequest, Message, Reply, Task
from fanout_workers.transport import Channel


class Deadly(Task):
    """Repeats a text; some first words do harm in place of an answer."""

    name = "deadly"

    class Payload(BaseModel):
        text: str

    def requests(self, payload: Any) -> Sequence[ChatRequest]:
        return [ChatRequest(messages=(Message(role="user", content=payload.text),), max_tokens=10)]

    def validate(self, reply: Reply, payload: Any) -> Any:
        match payload.text.split()[0]:
            case "DIE":
                os._exit(1)
            case "SEGV":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "HANG":  # lets other threads run
                while True:
                    time.sleep(1)
            case "GRAB":  # does not: the interpreter's lock is held throughout
                re.match(r"(a|a)*b", "a" * 60)
            case "DEAF":  # nothing is fetched from here on
                Channel._want = lambda _: 0  # type: ignore[method-assign]
            case "JAM":  # Celery's own thread does not go on
                hub: Any = get_event_loop()
                hub.call_soon(time.sleep, 3600)
        return reply.content
