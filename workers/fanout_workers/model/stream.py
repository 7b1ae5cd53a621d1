"""A streamed reply (server-sent events) put together to the body of a plain one."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any

import orjson

from fanout import Failure, Kind
from fanout_workers.model.replies import RAW_LIMIT, error_in


@dataclass(slots=True)
class Meter:
    """What can be seen of one request while it is in flight, and when it has failed.

    Attributes:
        chunks: pieces of text, of the answer or of its reasoning, that have come; a server sends
            one a token, or one for several tokens. 0 where the reply is not streamed.
        ttft_s: seconds to the first token, as in `Reply`.
    """

    chunks: int = 0
    ttft_s: float | None = None


class StreamedReply:
    """Collects the chunks of one streamed chat completion.

    Args:
        meter: counts what comes.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._body: dict[str, Any] = {}
        self._finish: str | None = None

    def feed(self, data: bytes) -> None:
        """Take the payload of one `data:` line.

        Raises:
            Failure: `server`, for an error in mid-stream or a chunk that is no JSON.
        """
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise Failure(
                Kind.SERVER, f"a chunk of the stream is not JSON: {error}", raw=self._raw()
            ) from None
        if not isinstance(chunk, dict):
            raise Failure(Kind.SERVER, "a chunk of the stream is no object", raw=self._raw())
        if failure := error_in(chunk):
            failure.raw = self._raw() or failure.raw
            raise failure
        for key in ("model", "usage", "metrics", "timings"):
            if chunk.get(key) is not None:
                self._body[key] = chunk[key]
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if isinstance(choice, dict):
            delta = choice.get("delta")
            delta = delta if isinstance(delta, dict) else {}
            self._take(self._content, delta.get("content"))
            self._take(self._reasoning, delta.get("reasoning") or delta.get("reasoning_content"))
            # The first counts: what some servers send behind it says stop once more.
            self._finish = self._finish or choice.get("finish_reason")

    def body(self) -> dict[str, Any]:
        """The whole reply in the form of one that was not streamed.

        Raises:
            Failure: `server`, when the stream ended before the model did.
        """
        if self._finish is None:
            raise Failure(Kind.SERVER, "the stream ended before the reply did", raw=self._raw())
        message = {"content": "".join(self._content) or None, "reasoning": "".join(self._reasoning)}
        return {**self._body, "choices": [{"message": message, "finish_reason": self._finish}]}

    def _take(self, parts: list[str], text: object) -> None:
        if isinstance(text, str) and text:
            self._meter.chunks += 1
            parts.append(text)

    def _raw(self) -> str | None:
        return "".join(self._content)[:RAW_LIMIT] or None


async def data_lines(stream: AsyncIterable[bytes]) -> AsyncIterable[bytes]:
    """The payloads of the stream's `data:` lines, up to `[DONE]`."""
    rest = b""
    async for chunk in stream:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            payload = line[5:].strip()
            if payload == b"[DONE]":
                return
            yield payload
