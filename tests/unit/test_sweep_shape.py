"""Made-up prompts: equally long, all different, and exact after one correction."""

from __future__ import annotations

from itertools import islice

import pytest
from pydantic import ValidationError

from fanout.sweep.shape import Prompts, Shape, calibrated


def test_prompts_hold_the_same_words_in_another_order() -> None:
    prompts = Prompts(Shape(prompt_tokens=300, output_tokens=40), seed=1)
    texts = [prompts.text() for _ in range(50)]
    assert len({" ".join(sorted(text.split())) for text in texts}) == 1
    assert len({tuple(text.split()[:12]) for text in texts}) == 50  # no common beginning to cache


@pytest.mark.parametrize("tokens", [1, 2, 24, 25, 26, 1500])
def test_any_length(tokens: int) -> None:
    shape = Shape(prompt_tokens=tokens)
    more = len(Prompts(Shape(prompt_tokens=1)).text().split()) - 1
    assert len(Prompts(shape).text().split()) == tokens + more


def test_a_shared_prefix_is_the_same_in_all_and_part_of_the_length() -> None:
    shape = Shape(prompt_tokens=300, shared_prefix_tokens=200)
    texts = [text.split() for text in (Prompts(shape).text(), Prompts(shape).text())]
    assert texts[0][:200] == texts[1][:200]
    assert texts[0][200:240] != texts[1][200:240]
    assert len(texts[0]) == len(Prompts(Shape(prompt_tokens=300)).text().split())


def test_a_seed_gives_the_same_prompts_and_none_others_each_time() -> None:
    shape = Shape(prompt_tokens=100)
    assert Prompts(shape, seed=5).text() == Prompts(shape, seed=5).text()
    assert Prompts(shape).text() != Prompts(shape).text()


def test_the_reply_is_asked_for_at_its_exact_length() -> None:
    prompts = Prompts(Shape(output_tokens=400))
    first, _ = islice(prompts, 2)
    assert first.max_tokens == 400
    assert first.extra == {"ignore_eos": True, "min_tokens": 400}
    assert prompts.request(7).extra == {"ignore_eos": True, "min_tokens": 7}
    assert Prompts(Shape(), exact=False).request().extra == {}


def test_one_correction_makes_the_length_exact() -> None:
    template = 23  # what a server adds, and what its tokenizer makes of the task

    def counted(words: int) -> int:
        return template + words

    words = calibrated([(1500, counted(1500))], 1500)
    assert counted(words) == 1500
    assert calibrated([(10, 500)], 100) == 1  # a template longer than the prompt


@pytest.mark.parametrize("tokens_per_word", [0.5, 1.0, 1.37, 3.0])
def test_two_corrections_do_for_words_of_any_number_of_tokens(tokens_per_word: float) -> None:
    seen: list[tuple[int, int]] = []
    words = 1500
    for _ in range(3):
        seen.append((words, round(23 + tokens_per_word * words)))
        words = calibrated(seen, 1500)
    assert abs(23 + tokens_per_word * words - 1500) <= max(1.0, tokens_per_word)


def test_a_shape_is_of_positive_numbers() -> None:
    with pytest.raises(ValidationError):
        Shape(prompt_tokens=0)
