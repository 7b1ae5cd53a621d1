"""One chat request to one endpoint, over the transport of `connections`.

A request is never tried again here: the limiter and the attempt loop have to see each failure.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import orjson

from fanout import ChatRequest, Endpoint, Failure, Kind, Reply
from fanout.failures import kind_of_status
from fanout.timeouts import derive
from fanout_workers.model.body import body_of
from fanout_workers.model.connections import ERRORS, HOPELESS, Answer, answer_to
from fanout_workers.model.replies import error_message, read_body, reply_of, server_ttft_s
from fanout_workers.model.stream import Meter, StreamedReply, data_lines

#: For the list of models, which costs a server nothing.
_MODELS_S = 30.0
#: A reply longer than this is a server gone wrong.
_MAX_REPLY_BYTES = 32 * 2**20


class ModelClient:
    """Sends chat requests to one endpoint.

    Args:
        endpoint: where to, and with what settings.
        transport: connections, shared by all clients of a process.
    """

    def __init__(self, endpoint: Endpoint, transport: httpx.AsyncBaseTransport) -> None:
        self.endpoint = endpoint
        self._transport = transport
        self._url = f"{endpoint.url}/chat/completions"
        self._host = httpx.URL(endpoint.url).netloc.decode()
        self._headers = {"content-type": "application/json", "accept": "application/json"}
        if key := endpoint.key():
            self._headers["authorization"] = f"Bearer {key}"
        self._model = endpoint.model
        self._resolving = asyncio.Lock()
        #: Seconds that the longest request so far was given.
        self.longest_s = 0.0

    async def complete(
        self, request: ChatRequest, request_id: str | None = None, meter: Meter | None = None
    ) -> Reply:
        """The model's answer.

        Args:
            request: what to ask.
            request_id: shown in the server's log and in its reply's id.
            meter: takes what can be seen meanwhile.

        Raises:
            Failure: in one of the kinds of `fanout.failures`.
            ConfigError: the endpoint's timeout is too short for the request's max_tokens.
        """
        timeout = derive(
            request.max_tokens, self.endpoint.min_tokens_per_s, self.endpoint.timeout_s
        )
        self.longest_s = max(self.longest_s, timeout.seconds)
        body = body_of(request, self.endpoint, await self._model_name())
        headers = {**self._headers, "x-request-id": request_id} if request_id else self._headers
        try:
            async with asyncio.timeout(timeout.seconds):
                return await self._post(orjson.dumps(body), headers, meter or Meter())
        except TimeoutError as error:
            raise Failure(
                Kind.TIMEOUT, f"no reply in {timeout.seconds:.0f} s ({timeout.arithmetic()})"
            ) from error

    async def models(self) -> list[str]:
        """Names of the models that the server serves.

        Raises:
            Failure: the server does not answer, or not with a list of models.
        """
        sending = self._sent("GET", f"{self.endpoint.url}/models", self._headers)
        try:
            async with asyncio.timeout(_MODELS_S), sending as response:
                body = read_body(await _bounded(response))
        except TimeoutError as error:
            raise Failure(Kind.TIMEOUT, f"no list of models in {_MODELS_S:g} s") from error
        listed = body.get("data")
        if not isinstance(listed, list):
            raise Failure(Kind.SERVER, "the reply is no list of models")
        return [str(model["id"]) for model in listed if isinstance(model, dict) and "id" in model]

    async def _model_name(self) -> str:
        if self._model is None:
            async with self._resolving:
                self._model = self._model or self._only(await self.models())
        return self._model

    def _only(self, served: list[str]) -> str:
        if len(served) != 1:
            raise Failure(
                Kind.REQUEST,
                f"endpoint {self.endpoint.name} serves {', '.join(served) or 'no model'}: "
                "name one in its `model`",
            )
        return served[0]

    async def _post(self, body: bytes, headers: dict[str, str], meter: Meter) -> Reply:
        started = time.monotonic()
        async with self._sent("POST", self._url, headers, body) as response:
            if "text/event-stream" in response.headers.get("content-type", ""):
                collected = await self._read_stream(response, started, meter)
            else:
                collected = read_body(await _bounded(response))
                meter.ttft_s = server_ttft_s(collected)
        return reply_of(collected, time.monotonic() - started, meter.ttft_s)

    async def _read_stream(
        self, response: Answer, started: float, meter: Meter
    ) -> dict[str, object]:
        reply = StreamedReply(meter)
        async for data in data_lines(response.chunks()):
            reply.feed(data)
            if meter.ttft_s is None and meter.chunks:
                meter.ttft_s = time.monotonic() - started
        return reply.body()

    @asynccontextmanager
    async def _sent(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None = None
    ) -> AsyncIterator[Answer]:
        """The response to a request, its status checked; closed at the end, which aborts it."""
        try:
            response = await answer_to(self._transport, method, url, headers, body)
        except ERRORS as error:
            kind = Kind.REQUEST if isinstance(error, HOPELESS) else Kind.CONNECT
            raise Failure(kind, f"{self._host}: {_words(error)}") from error
        try:
            if response.status // 100 != 2:
                raise await self._refused(response)
            yield response
        except ERRORS as error:
            raise Failure(Kind.SERVER, f"the reply broke off: {_words(error)}") from error
        finally:
            await response.aclose()

    async def _refused(self, response: Answer) -> Failure:
        status = response.status
        body = await _bounded(response)
        return Failure(
            kind_of_status(status),
            f"HTTP {status}: {error_message(body)}",
            status=status,
            retry_after=_retry_after(response.headers.get("retry-after")),
        )


async def _bounded(response: Answer) -> bytes:
    whole = response.whole()
    if whole is not None and len(whole) <= _MAX_REPLY_BYTES:
        return whole
    body = bytearray(whole or b"")
    async for chunk in response.chunks():
        body += chunk
        if len(body) > _MAX_REPLY_BYTES:
            raise Failure(Kind.SERVER, f"the reply is longer than {_MAX_REPLY_BYTES} bytes")
    return bytes(body)


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number, or an HTTP date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, at.timestamp() - time.time())


def _words(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
