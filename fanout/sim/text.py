"""Text in tokens: the simulator takes four characters for one."""

from __future__ import annotations

from typing import Any

CHARACTERS = 4
#: What a chat template adds to each message.
_TEMPLATE_TOKENS = 4

_SENTENCE = (
    "The candidate should have experience with data, systems and people, work well in a team, "
    "write clearly and keep what was agreed. We offer a fair salary, time to learn and a place "
    "where questions are welcome. "
)
_CORPUS = _SENTENCE * 40


def tokens_in(text: str) -> int:
    """How many tokens the text is."""
    return -(-len(text) // CHARACTERS)


def prompt_tokens(messages: list[Any]) -> int:
    """How many tokens a chat is: contents as strings or as lists of parts."""
    total = 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if type(part) is dict)
        total += _TEMPLATE_TOKENS + (tokens_in(content) if isinstance(content, str) else 0)
    return total


def prose(characters: int, offset: int = 0) -> str:
    """Running text of exactly that length, without quotes, breaks or a blank at an end."""
    start = offset % len(_SENTENCE)
    text = _CORPUS[start : start + characters]
    while len(text) < characters:
        text += _CORPUS[: characters - len(text)]
    if text[:1] == " ":
        text = "a" + text[1:]
    return text[:-1] + "." if text[-1:] == " " else text
