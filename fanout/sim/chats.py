"""Chat requests in flight: from the engine's events to replies, and the book about them.

The engine's time runs `speed` times as fast as the wall clock; whatever a client is told is in wall
time.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass
from typing import Any

import orjson

from fanout.sim import bodies
from fanout.sim.answers import Answer, Answers, Refused
from fanout.sim.delays import Delays
from fanout.sim.engine import Engine, Gauges, QueueFull, Sequence, Work
from fanout.sim.faults import HUGE, Faults
from fanout.sim.http import Exchange
from fanout.sim.metrics import Metrics
from fanout.sim.options import Options
from fanout.sim.stats import Stats, Visit

#: Streams are served together at this interval; more new tokens than this share an event.
_STREAM_S = 0.02
_STREAM_EVENTS = 4
_HALVED = ("broken", "cut")
_OUTCOMES = {400: "refused", 404: "refused", 413: "refused", 503: "unavailable"}


@dataclass(eq=False, slots=True)
class Chat:
    """A chat request that has been taken.

    Attributes:
        exchange: where to reply.
        visit: its line in the book.
        answer: what will be said.
        identity: id of the completion.
        created: seconds since 1970.
        fault: what goes wrong with it.
        sequence: its place in the engine.
        stream: its events, if it is streamed.
    """

    exchange: Exchange
    visit: Visit
    answer: Answer
    identity: str
    created: int
    fault: str | None
    sequence: Sequence
    stream: bodies.Stream | None = None


class Chats:
    """Runs chat requests through an engine in real or scaled time.

    Args:
        options: what is simulated.

    Attributes:
        stats: what was seen.
        metrics: what Prometheus is told.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._faults = options.faults
        self._model = options.profile.name
        self._began = time.monotonic()
        self.stats = Stats(self._began)
        self.metrics = Metrics(self._model, self.gauges)
        self._engine = _engine(options)
        self._answers = Answers(options.profile, options.lengths, options.effort, options.seed)
        self._dice = random.Random(options.seed + 1)  # noqa: S311 - no secret
        self._running: dict[Sequence, Chat] = {}
        self._known: dict[str, Chat] = {}
        self._streams: dict[Chat, bodies.Stream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._flusher: asyncio.TimerHandle | None = None
        self._served = 0

    def gauges(self) -> Gauges:
        """The engine's load now."""
        return self._engine.gauges(self._time())

    def out(self) -> bool:
        """Whether this is the time of an outage."""
        return self._faults.out(time.monotonic() - self._began)

    def go_wrong(self, body: dict[str, Any]) -> None:
        """Let other things go wrong from now on; raises `UsageError`.

        Args:
            body: of `POST /faults`, see `Faults.told`.
        """
        self._faults = Faults.told(body, time.monotonic() - self._began)

    def close(self) -> None:
        """Let nothing happen by itself any more."""
        for timer in (self._timer, self._flusher):
            if timer is not None:
                timer.cancel()

    def arrived(self, exchange: Exchange) -> None:
        """The head of a chat request is here: from now on it is in flight."""
        exchange.data = self.stats.arrived(time.monotonic(), exchange.request_id)

    def take(self, exchange: Exchange) -> None:
        """The request is complete: answer it when its time has come."""
        visit: Visit = exchange.data
        try:
            self._take(exchange, visit)
        except Refused as refusal:
            self.stats.ended(time.monotonic(), visit, _OUTCOMES.get(refusal.status, "error"))
            exchange.reply(refusal.status, bodies.error(refusal.status, refusal.message))
        else:
            self._go_on()

    def gone(self, exchange: Exchange) -> None:
        """The client has left: that aborts its request."""
        data: Visit | Chat = exchange.data
        now = time.monotonic()
        if isinstance(data, Visit):  # it hangs, or its body had not come yet
            self.stats.ended(now, data, "aborted")
        else:
            self._leave(data)
            self.stats.ended(now, data.visit, "aborted")
            self._go_on()

    def abort(self, name: str) -> None:
        """End the request of that id; its client gets what there is of an answer."""
        chat = self._known.get(name) or self._known.get(f"chatcmpl-{name}")
        if chat is not None:
            tokens = self._engine.generated(chat.sequence, self._time())
            self._leave(chat)
            self._say(chat, "abort", tokens)
            self._go_on()

    def _take(self, exchange: Exchange, visit: Visit) -> None:
        faults = self._faults
        if self.out():
            raise Refused(503, "The server is not available.")
        fault = faults.draw(self._dice)
        if fault == "error":
            raise Refused(faults.status, "The simulator was asked to fail.")
        if fault == "inside":
            self.stats.ended(time.monotonic(), visit, fault)
            exchange.reply(200, bodies.error(500, "The simulator was asked to fail."))
            return
        if fault == "hang":
            self.stats.hung(visit)
            return
        body = read_json(exchange)
        model = body.get("model")
        if model not in (None, "", self._model, self._options.profile.alias):
            raise Refused(404, f"The model `{model}` does not exist.")
        answer = self._answers.answer(body)
        self._served += 1
        identity = f"chatcmpl-{exchange.request_id or body.get('request_id') or self._served}"
        work = Work(identity, answer.prompt_tokens, answer.tokens, answer.finish_reason)
        try:
            sequence = self._engine.add(self._time(), work)
        except QueueFull:
            raise Refused(503, "Too many requests are queued.") from None
        chat = Chat(exchange, visit, answer, identity, int(time.time()), fault, sequence)
        exchange.data = self._running[sequence] = self._known[identity] = chat
        if answer.stream:
            self._open(chat)

    def _open(self, chat: Chat) -> None:
        chat.stream = bodies.Stream(chat.identity, self._model, chat.created, chat.answer)
        chat.exchange.open_stream()
        self._streams[chat] = chat.stream
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().call_later(_STREAM_S, self._flush)

    def _leave(self, chat: Chat) -> None:
        """Forget a chat, wherever it is."""
        self._streams.pop(chat, None)
        if self._known.get(chat.identity) is chat:
            del self._known[chat.identity]
        if self._running.pop(chat.sequence, None) is not None:
            self._engine.abort(self._time(), chat.sequence)

    def _go_on(self) -> None:
        """Reply to what has finished, and come back when the next will."""
        for sequence in self._engine.advance(self._time()):
            chat = self._running.pop(sequence, None)
            if chat is None:  # its client left at the very moment at which it was finished
                continue
            self._leave(chat)
            self._measure(chat)
            self._say(chat, chat.answer.finish_reason, chat.answer.tokens)
        upcoming = self._engine.next_at()
        if upcoming is None:
            return
        at = self._began + upcoming / self._options.speed
        if self._timer is not None:
            if self._timer_at <= at:  # it will look again when it comes
                return
            self._timer.cancel()
        # Whole milliseconds are what event loops wait; never wake before the time.
        wait_ms = max(0, math.ceil((at - time.monotonic()) * 1000))
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(wait_ms / 1000, self._due)

    def _due(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._go_on()

    def _say(self, chat: Chat, finish_reason: str, tokens: int) -> None:
        """Send all that is left to send, and end the visit."""
        outcome = "abort_requests" if finish_reason == "abort" else "answered"
        if chat.fault not in (None, "huge"):
            outcome = str(chat.fault)
        self.stats.ended(time.monotonic(), chat.visit, outcome)
        if chat.fault == "reset":
            chat.exchange.reset()
            return
        answer = chat.answer
        thought = min(tokens, answer.reasoning_tokens)
        counts = bodies.usage(answer.prompt_tokens, tokens, thought)
        metrics = self._timing(chat, tokens) if self._options.per_request_metrics else None
        if chat.stream is not None:
            data = chat.stream.opening() if not chat.stream.sent else b""
            if chat.fault != "null":
                data += chat.stream.upto(tokens, _STREAM_EVENTS)
            if chat.fault in _HALVED:
                _halve(chat, data[: len(data) // 2], 0)
                return
            shown = counts if answer.include_usage else None
            chat.exchange.send(data + chat.stream.closing(finish_reason, shown, metrics))
            chat.exchange.close_stream()
            return
        content = None if chat.fault == "null" else answer.content()
        if finish_reason == "abort" and content is not None:
            content = bodies.piece(content, answer.content_tokens, 0, tokens - thought)
        if chat.fault == "huge" and content is not None:
            content += " " * HUGE
        message = content, answer.reasoning()
        head = chat.identity, self._model, chat.created
        body = bodies.completion(head, message, finish_reason, counts, metrics)
        if chat.fault in _HALVED:
            _halve(chat, body[: len(body) // 2], len(body))
        else:
            chat.exchange.reply(200, body)

    def _flush(self) -> None:
        """Send every stream the tokens that it has gained."""
        self._flusher = None
        self._go_on()
        now = self._time()
        for chat, stream in list(self._streams.items()):
            if chat.fault in ("null", "reset"):
                continue
            tokens = self._engine.generated(chat.sequence, now)
            opening = stream.opening() if tokens and not stream.sent else b""
            data = opening + stream.upto(tokens, _STREAM_EVENTS)
            if chat.fault in _HALVED and 2 * tokens >= chat.answer.tokens:
                self._leave(chat)
                self.stats.ended(time.monotonic(), chat.visit, str(chat.fault))
                _halve(chat, data, 0)
            elif data:
                chat.exchange.send(data)
        if self._streams:
            self._flusher = asyncio.get_running_loop().call_later(_STREAM_S, self._flush)
        self._go_on()  # there may be room now for what waits

    def _timing(self, chat: Chat, tokens: int) -> dict[str, float]:
        """vLLM's per-request metrics, in wall milliseconds."""
        queue, ttft, generation = self._phases(chat.sequence)
        return {
            "queue_time_ms": queue * 1e3,
            "time_to_first_token_ms": ttft * 1e3,
            "generation_time_ms": generation * 1e3,
            "mean_itl_ms": generation * 1e3 / (tokens - 1) if tokens > 1 else 0.0,
            "tokens_per_second": tokens / generation if generation else 0.0,
        }

    def _measure(self, chat: Chat) -> None:
        queue, ttft, generation = self._phases(chat.sequence)
        tokens = chat.answer.tokens
        itl = generation / (tokens - 1) if tokens > 1 else None
        # vLLM's histogram counts the first token from the arrival, a reply's `metrics` do from the
        # admission.
        self.metrics.finished(queue, queue + ttft, itl, queue + ttft + generation)

    def _phases(self, sequence: Sequence) -> tuple[float, float, float]:
        """Wall seconds in the queue, from there to the first token, and from there to the end."""
        end = self._time() if sequence.ended_at is None else sequence.ended_at
        admitted = end if sequence.admitted_at is None else sequence.admitted_at
        first = end if sequence.first_token_at is None else sequence.first_token_at
        spans = admitted - sequence.arrived_at, first - admitted, end - first
        queue, ttft, generation = (span / self._options.speed for span in spans)
        return queue, ttft, generation

    def _time(self) -> float:
        """The engine's time."""
        return (time.monotonic() - self._began) * self._options.speed


def _halve(chat: Chat, data: bytes, length: int) -> None:
    """Send half a reply and no more."""
    if chat.fault == "broken":
        chat.exchange.break_off(data, length)
    else:
        chat.exchange.cut(data)


def _engine(options: Options) -> Engine | Delays:
    if options.seconds is not None:
        return Delays(options.seconds, options.seed, options.max_num_seqs, options.queue_limit)
    return Engine(
        options.profile,
        options.seed,
        options.noise,
        options.max_num_seqs,
        options.queue_limit,
        options.slow_start_s,
    )


def read_json(exchange: Exchange) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        Refused: there is none, or it is too large.
    """
    if exchange.too_large:
        raise Refused(413, "The request is too large.")
    try:
        body = orjson.loads(exchange.body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"JSON decode error: {error}") from None
    if not isinstance(body, dict):
        raise Refused(400, "The body is no JSON object.")
    return body
