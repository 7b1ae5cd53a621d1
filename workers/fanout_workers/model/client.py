"""One chat request to one endpoint, over the transport of `connections`.

A request is never tried again here: the limiter and the attempt loop have to see each failure.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson

from fanout import ChatRequest, Endpoint, Failure, Kind, Message, Reply, Usage
from fanout.failures import kind_of_status
from fanout.timeouts import derive
from fanout_workers.model.body import body_of
from fanout_workers.model.connections import (
    ERRORS,
    HOPELESS,
    HUNG_UP,
    NO_HTTP,
    NOT_CONNECTED,
    Answer,
    answer_to,
)
from fanout_workers.model.replies import error_message, read_body, reply_of, server_ttft_s
from fanout_workers.model.stream import Meter, StreamedReply, data_lines

#: For the list of models, which costs a server nothing.
_MODELS_S = 30.0
#: A reply longer than this is a server gone wrong: a million tokens are half of it.
_MAX_REPLY_BYTES = 8 * 2**20
#: What shows whether a server completes anything at all. Some break on a budget of one.
_CANARY = ChatRequest(messages=(Message(role="user", content="Say yes."),), max_tokens=16)
#: Failures in which the server has worked.
_ANSWERS = frozenset({Kind.TRUNCATED, Kind.REASONING, Kind.EMPTY})
_ROOM = re.compile(
    r"(?:maximum context length|context length|max_model_len|n_ctx)\D{0,20}?(\d{3,9})"
)


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
        #: Tokens of prompt and reply that the model has room for; None until the server says it.
        self.room: int | None = None
        #: Names of the models that the server listed last.
        self.served: tuple[str, ...] = ()

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
        meter = meter or Meter()
        try:
            async with asyncio.timeout(timeout.seconds):
                return await self._post(orjson.dumps(body), headers, meter, request.max_tokens)
        except TimeoutError as error:
            what = f"the stream stopped after {meter.chunks} pieces:" if meter.chunks else ""
            words = f"{what} no reply in {timeout.seconds:.0f} s ({timeout.arithmetic()})".strip()
            raise _costing(Failure(Kind.TIMEOUT, words), meter) from error
        except Failure as failure:
            self._note_room(failure)
            raise _costing(failure, meter) from failure.__cause__

    async def canary(self, timeout_s: float) -> None:
        """Return when the server has completed a few tokens of something.

        Raises:
            Failure: it has not: it is away, full, broken, or silent for `timeout_s` seconds.
        """
        body = orjson.dumps(body_of(_CANARY, self.endpoint, await self._model_name()))
        try:
            async with asyncio.timeout(timeout_s):
                await self._post(body, self._headers, Meter(), _CANARY.max_tokens)
        except TimeoutError as error:
            raise Failure(Kind.TIMEOUT, f"not even a few tokens in {timeout_s:g} s") from error
        except Failure as failure:
            refused = failure.kind is Kind.REQUEST and not failure.is_endpoints
            if not refused and failure.kind not in _ANSWERS:
                raise

    def _note_room(self, failure: Failure) -> None:
        if failure.status == 400 and (said := _ROOM.search(failure.message)):
            self.room = int(said[1])

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
        models = [model for model in listed if isinstance(model, dict) and "id" in model]
        self._note_models(models)
        return list(self.served)

    def _note_models(self, models: list[dict[str, Any]]) -> None:
        self.served = tuple(str(model["id"]) for model in models)
        wanted = self.endpoint.model
        for model in models:
            room = model.get("max_model_len")  # vLLM's
            if isinstance(room, int) and (len(models) == 1 or model["id"] == wanted):
                self.room = room

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
                status=404,  # as if one had been asked for that is not there
            )
        return served[0]

    async def _post(self, body: bytes, headers: dict[str, str], meter: Meter, budget: int) -> Reply:
        started = time.monotonic()
        async with self._sent("POST", self._url, headers, body) as response:
            if "text/event-stream" in response.headers.get("content-type", ""):
                collected = await self._read_stream(response, started, meter)
            else:
                collected = read_body(await _bounded(response))
                meter.ttft_s = server_ttft_s(collected)
        return reply_of(collected, time.monotonic() - started, meter.ttft_s, budget)

    async def _read_stream(
        self, response: Answer, started: float, meter: Meter
    ) -> dict[str, object]:
        reply = StreamedReply(meter)
        async for data in data_lines(_limited(response.chunks())):
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
            raise self._unanswered(error) from error
        try:
            if response.status // 100 != 2:
                raise await self._refused(response)
            yield response
        except ERRORS as error:
            raise Failure(Kind.SERVER, f"the reply broke off: {_words(error)}") from error
        finally:
            await response.aclose()

    def _unanswered(self, error: Exception) -> Failure:
        """Why no head of a reply came."""
        words = f"{self._host}: {_words(error)}"
        if isinstance(error, HOPELESS):
            return Failure(Kind.REQUEST, words)
        if isinstance(error, NO_HTTP):
            return Failure(Kind.SERVER, words)
        failure = Failure(Kind.CONNECT, words)
        failure.hung_up = isinstance(error, HUNG_UP) and not isinstance(error, NOT_CONNECTED)
        return failure

    async def _refused(self, response: Answer) -> Failure:
        status = response.status
        body = await _bounded(response)
        words = f"HTTP {status}: {error_message(body)}"
        if status // 100 == 3:
            words = f"HTTP {status}: {_redirected(self._url, response.headers.get('location'))}"
        if status == 404 and self.served:
            words += f" (the server has {', '.join(self.served)})"
        return Failure(
            kind_of_status(status),
            words,
            status=status,
            retry_after=_retry_after(response.headers.get("retry-after")),
        )


def _redirected(url: str, location: str | None) -> str:
    """Where a redirect points, without what may be secret in a query or a user's part."""
    if not location:
        return "a redirect without a target; is the endpoint's url right?"
    try:
        target = httpx.URL(url).join(location)
    except (httpx.InvalidURL, ValueError):
        return "a redirect to something that is no URL; is the endpoint's url right?"
    where = f"{target.scheme}://{target.netloc.decode()}{target.path}"
    return f"a redirect to {where[:200]}, which is not followed: set the endpoint's url"


async def _bounded(response: Answer) -> bytes:
    whole = response.whole()
    if whole is None:
        return b"".join([chunk async for chunk in _limited(response.chunks())])
    if len(whole) > _MAX_REPLY_BYTES:
        raise _too_long()
    return whole


async def _limited(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks, as long as they are no more than a reply can be."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > _MAX_REPLY_BYTES:
            raise _too_long()
        yield chunk


def _too_long() -> Failure:
    return Failure(Kind.SERVER, f"the reply is longer than {_MAX_REPLY_BYTES} bytes")


def _costing(failure: Failure, meter: Meter) -> Failure:
    """The failure with the tokens that were seen to come, where the server has not counted them."""
    if failure.usage is None and meter.chunks:
        failure.usage = Usage(completion=meter.chunks)
    return failure


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
