"""What a chat request asks for, and what it will be answered: pure functions and drawn numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import rstr

from fanout.errors import UsageError
from fanout.sim.curves import Profile
from fanout.sim.instances import Instances
from fanout.sim.lengths import Distribution
from fanout.sim.text import CHARACTERS, prompt_tokens, prose, tokens_in

_SCHEMAS_KEPT = 256
#: Spread of the length of a chain of thought.
_REASONING_SIGMA = 0.5


class Refused(Exception):
    """The request cannot be served: an HTTP status and the server's words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(slots=True)
class Answer:
    """What will be said.

    Attributes:
        prompt_tokens: of the request.
        reasoning_tokens: of the chain of thought.
        content_tokens: of the answer.
        finish_reason: stop or length.
        stream: whether to send it token by token.
        include_usage: whether the stream ends with the counts.
        show_reasoning: whether the chain of thought is sent.
        seed: of the text.
        instances: makes the content; prose when None.
        whole: characters that the content would have had, had it not been cut.
        fixed: the content itself, where there is no choice.
    """

    prompt_tokens: int
    reasoning_tokens: int
    content_tokens: int
    finish_reason: str
    stream: bool
    include_usage: bool
    show_reasoning: bool
    seed: int
    instances: Instances | None = None
    whole: int = 0
    fixed: str | None = None

    @property
    def tokens(self) -> int:
        """Output tokens, reasoning included."""
        return self.reasoning_tokens + self.content_tokens

    def content(self) -> str | None:
        """The text of the answer; None when the budget went into reasoning."""
        if not self.content_tokens:
            return None
        if self.fixed is not None:
            text = self.fixed
        elif self.instances is not None:
            text = self.instances.render(self.seed, self.whole)
        else:
            text = prose(self.content_tokens * CHARACTERS, self.seed)
        return text[: self.content_tokens * CHARACTERS] if self.finish_reason == "length" else text

    def reasoning(self) -> str | None:
        """The chain of thought."""
        if not (self.reasoning_tokens and self.show_reasoning):
            return None
        return prose(self.reasoning_tokens * CHARACTERS, self.seed + 7)


class Answers:
    """Makes answers to chat requests.

    Args:
        profile: the model.
        lengths: output tokens of an answer, reasoning not counted; None: as many as the request
            allows, reasoning counted.
        effort: reasoning effort where a request names none; None: no reasoning then.
        seed: of all draws.
    """

    def __init__(
        self, profile: Profile, lengths: Distribution | None, effort: str | None, seed: int
    ) -> None:
        self._profile = profile
        self._lengths = lengths
        self._effort = effort
        self._dice = random.Random(seed)  # noqa: S311 - no secret
        self._instances: dict[bytes, Instances] = {}
        self._efforts = dict(profile.reasoning_tokens)

    def answer(self, body: Mapping[str, Any]) -> Answer:
        """The answer to a request's JSON.

        Raises:
            Refused: in vLLM's words, as far as they are known.
        """
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refused(400, "messages: a list of at least one message is needed")
        if body.get("n") not in (None, 1):
            raise Refused(400, "n: this server gives one answer a request")
        prompt = prompt_tokens(messages)
        budget, named = self._budget(body, prompt)
        stop_early = not body.get("ignore_eos")
        seed = self._dice.getrandbits(24)
        reasoning = self._reasoning(body)
        drawn = self._drawn(budget if named else self._profile.output_tokens, reasoning)
        drawn = max(drawn, _int(body, "min_tokens", 0) - reasoning, 1)
        made = Answer(prompt, reasoning, drawn, "stop", False, False, True, seed)
        self._shape(made, body)
        if not stop_early or made.tokens > budget:
            made.reasoning_tokens = min(reasoning, budget)
            made.content_tokens = budget - made.reasoning_tokens
            made.finish_reason = "length"
        options = body.get("stream_options") or {}
        made.stream = bool(body.get("stream"))
        made.include_usage = bool(options.get("include_usage"))
        made.show_reasoning = body.get("include_reasoning") is not False
        return made

    def _budget(self, body: Mapping[str, Any], prompt: int) -> tuple[int, bool]:
        """Output tokens that the request may take, and whether it says so itself."""
        room = self._profile.max_model_len - prompt
        limit = _int(body, "max_completion_tokens", None)
        limit = _int(body, "max_tokens", None) if limit is None else limit
        if limit is not None and limit < 1:
            raise Refused(400, f"max_tokens must be at least 1, got {limit}.")
        if room < 1 or (limit or 0) > room:
            asked = f"{limit or 0} output tokens and " if limit else ""
            raise Refused(
                400,
                f"This model's maximum context length is {self._profile.max_model_len} tokens. "
                f"However, you requested {asked}{prompt} tokens in the messages. Please reduce "
                "the length of the input messages.",
            )
        return (room, False) if limit is None else (limit, True)

    def _reasoning(self, body: Mapping[str, Any]) -> int:
        effort = body.get("reasoning_effort") or self._effort
        if effort is None or effort == "none" or not self._efforts:
            return 0
        if effort not in self._efforts:
            raise Refused(400, f"reasoning_effort: one of {', '.join(self._efforts)}")
        mean = self._efforts[effort]
        shape = Distribution("lognormal", (mean, _REASONING_SIGMA))
        return round(mean / shape.mean() * shape.draw(self._dice))

    def _drawn(self, allowed: int, reasoning: int) -> int:
        if self._lengths is None:
            return allowed - reasoning
        return round(self._lengths.draw(self._dice))

    def _shape(self, made: Answer, body: Mapping[str, Any]) -> None:
        """Let the answer have the form that the request wants, and its length follow from that."""
        form = _format(body)
        if "choice" in form or "regex" in form:
            made.fixed = (
                _choice(form["choice"], made.seed)
                if "choice" in form
                else rstr.Rstr(random.Random(made.seed)).xeger(form["regex"])  # noqa: S311
            )
            made.content_tokens = max(1, tokens_in(made.fixed))
        elif "json" in form:
            made.instances = self._instances_of(form["json"])
            made.whole = made.instances.length(made.seed, made.content_tokens * CHARACTERS)
            made.content_tokens = -(-made.whole // CHARACTERS)

    def _instances_of(self, schema: Any) -> Instances:
        if isinstance(schema, str):
            schema = orjson.loads(schema)
        key = orjson.dumps(schema)
        found = self._instances.get(key)
        if found is None:
            try:
                found = Instances(schema)
            except UsageError as error:
                raise Refused(400, str(error)) from error
            if len(self._instances) >= _SCHEMAS_KEPT:
                self._instances.clear()
            self._instances[key] = found
        return found


def _choice(options: list[str], seed: int) -> str:
    """One of them."""
    return str(options[seed % len(options)])


def _format(body: Mapping[str, Any]) -> dict[str, Any]:
    """The form wanted, in the words of `structured_outputs`."""
    form: dict[str, Any] = body.get("structured_outputs") or {}
    wanted = body.get("response_format") or {}
    if not isinstance(form, dict) or not isinstance(wanted, dict):
        raise Refused(400, "response_format and structured_outputs are objects")
    match wanted.get("type"):
        case "json_schema":
            described = wanted.get("json_schema")
            if not isinstance(described, dict) or "schema" not in described:
                raise Refused(400, "response_format: json_schema has no schema")
            form = {"json": described["schema"]}
        case "json_object":
            form = {"json": {"type": "object"}}
    if form.get("json_object"):
        form = {"json": {"type": "object"}}
    return form


def _int(body: Mapping[str, Any], key: str, default: Any) -> Any:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(400, f"{key}: Input should be a valid integer")
    return value
