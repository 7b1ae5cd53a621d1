"""The demo's data: passages of a novel, what to extract from them, and the instruction.

Where the text comes from is said in `SOURCE.md`.
"""

from importlib.resources import files
from pathlib import Path

from fanout.demo.schema import Character, Passage

__all__ = ["MAX_TOKENS", "Character", "Passage", "passages_path", "prompt"]

#: Completion tokens of one reply; replies of the embedded model take 57 on average.
MAX_TOKENS = 192


def passages_path() -> Path:
    """The passages as JSON lines: `{"id": "pp-001", "chapter": 1, "text": "..."}`."""
    return Path(str(files(__name__) / "passages.jsonl"))


def prompt() -> str:
    """The instruction, the same for every passage."""
    return (files(__name__) / "prompt.md").read_text(encoding="utf-8")
