"""Made-up requests of an exact shape: so many prompt tokens in, so many tokens out.

Every prompt holds the same words in another order, so all are equally long, in any tokenizer that
splits at white space, and no two begin alike: what one request leaves in a server's prefix cache
helps no other. Order matters for more than the cache: with the same text again and again a mixture
of experts would ask the same experts each time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict, Field

from fanout.chat import ChatRequest, Message

#: Words that are one token, with the blank before them, in the vocabularies of Llama, GPT, Qwen
#: and Mistral alike.
_VOCABULARY = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government number
night point home water room mother area money story fact month lot right study book eye job word
business issue side kind head house service friend father power hour game line end member law
car city community name president team minute idea body information back parent face others
level office door health person art war history party result change morning reason research girl
guy moment air teacher force education
"""
_WORDS = tuple(_VOCABULARY.split())
_TASK = "Write a long story that uses all of these words, and do not stop before it is told:"
#: Words that are shuffled as one piece; a whole prompt of single ones would cost 1 ms to make.
_PIECE = 25


class Shape(BaseModel):
    """The shape of every request of a sweep.

    Attributes:
        prompt_tokens: as the server counts them, its chat template included.
        output_tokens: exactly so many, where the server takes ignore_eos and min_tokens.
        shared_prefix_tokens: of the prompt, the part that is the same in all, at its beginning.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt_tokens: int = Field(1500, ge=1)
    output_tokens: int = Field(400, ge=1)
    shared_prefix_tokens: int = Field(0, ge=0)


class Prompts:
    """An endless supply of requests of one shape.

    Args:
        shape: of each.
        words: how many words make its prompt; `shape.prompt_tokens` until it is calibrated.
        exact: ask the server for exactly `output_tokens`.
        seed: the same seed gives the same prompts. A server remembers prompts of earlier sweeps,
            so by default it is another one each time.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        words: int | None = None,
        exact: bool = True,
        seed: int | None = None,
    ) -> None:
        self.shape = shape
        self.words = shape.prompt_tokens if words is None else max(1, words)
        self.exact = exact
        self._random = random.Random(seed)  # noqa: S311 - no secret

    def __iter__(self) -> Iterator[ChatRequest]:
        while True:
            yield self.request()

    def request(self, max_tokens: int | None = None) -> ChatRequest:
        """One request; with `max_tokens`, one of that many tokens instead of the shape's."""
        tokens = max_tokens or self.shape.output_tokens
        extra = {"ignore_eos": True, "min_tokens": tokens} if self.exact else {}
        return ChatRequest(
            messages=(Message(role="user", content=self.text()),), max_tokens=tokens, extra=extra
        )

    def text(self) -> str:
        """The text of one prompt."""
        shared = min(self.shape.shared_prefix_tokens, self.words)
        words = [_WORDS[i % len(_WORDS)] for i in range(shared, self.words)]
        pieces = [words[i : i + _PIECE] for i in range(0, len(words), _PIECE)]
        # A short piece stays in its place, or prompts would differ in where it is and no more.
        self._random.shuffle(pieces)
        if pieces:
            self._random.shuffle(pieces[0])
        own = " ".join(word for piece in pieces for word in piece)
        if not shared:
            return f"{own}\n{_TASK}"
        prefix = " ".join(_WORDS[i % len(_WORDS)] for i in range(shared))
        return f"{prefix} {own}\n{_TASK}"


def calibrated(seen: Sequence[tuple[int, int]], wanted: int) -> int:
    """How many words make `wanted` tokens.

    Args:
        seen: numbers of words and the tokens that they made, at least one pair. Template and task
            are part of each count, so it is a line and no proportion; with one pair only, one more
            word is taken to be one more token.
        wanted: tokens.
    """
    words, counted = seen[-1]
    slope = 1.0
    if len(seen) > 1 and words != seen[-2][0]:
        slope = (counted - seen[-2][1]) / (words - seen[-2][0])
    if slope <= 0:
        slope = 1.0
    return max(1, words + round((wanted - counted) / slope))
