"""The input: any number of documents of 2 KB, the same for the same seed, written as they are made.

`python documents.py COUNT PATH` writes them; a million take 2.1 GB and about 15 s.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

#: Characters of one document.
CHARS = 2048
_SEED = 20260422
_SENTENCES = 512
_WORDS = ["engineer", "shift", "machine", "order", "price", "weld", "class", "week", "answer"]


def lines(count: int, seed: int = _SEED) -> Iterator[bytes]:
    """`count` lines of JSON with an id and a text of `CHARS` characters, each different."""
    rng = random.Random(seed)
    sentences = [" ".join(rng.choices(_WORDS, k=9)) + ". " for _ in range(_SENTENCES)]
    for number in range(count):
        # 48 sentences of 45 characters or more are longer than a document.
        text = f"Posting {number}: {''.join(rng.choices(sentences, k=48))}"[:CHARS]
        yield b'{"id":"p%d","text":"%s"}\n' % (number, text.encode())


def write(count: int, path: Path) -> None:
    """Write `count` documents."""
    with path.open("wb") as stream:
        stream.writelines(lines(count))


if __name__ == "__main__":
    write(int(sys.argv[1]), Path(sys.argv[2]))
