"""math_answer accepts no answer of another meaning, over pairs of the shapes of public golds."""

from __future__ import annotations

import pytest

import verifiers
from tests.gold_shapes import Answer, different_pairs, equal_pairs


def graded(pairs: list[tuple[Answer, Answer]]) -> list[tuple[str, str, str]]:
    """(gold, answer, status) of each pair."""
    verdicts = verifiers.load("math_answer").grade(
        [rf"So the answer is $\boxed{{{answer.text}}}$." for _, answer in pairs],
        [{"gold": gold.text} for gold, _ in pairs],
    )
    return [(gold.text, answer.text, v.status) for (gold, answer), v in zip(pairs, verdicts, strict=True)]


def test_no_pair_of_different_answers_is_accepted() -> None:
    pairs = different_pairs(1500, seed=0)
    assert [row for row in graded(pairs) if row[2] not in ("fail", "malformed")] == []
    shapes = {meaning[0] for gold, _ in pairs for meaning in gold.meanings if isinstance(meaning, tuple)}
    assert len(shapes) >= 22, "the sample holds every shape"


def test_two_spellings_of_one_answer_are_accepted() -> None:
    assert [row for row in graded(equal_pairs(400, seed=0)) if row[2] != "pass"] == []


def test_every_generated_gold_can_be_met() -> None:
    tasks = [{"gold": gold.text} for gold, _ in different_pairs(400, seed=3)]
    assert verifiers.gold_faults("math_answer", tasks) == []


@pytest.mark.long
def test_no_pair_of_200_000_different_answers_is_accepted() -> None:
    for seed in range(1, 21):
        rows = graded(different_pairs(10_000, seed=seed))
        assert [row for row in rows if row[2] not in ("fail", "malformed")] == []


@pytest.mark.long
def test_ten_thousand_pairs_of_two_spellings_are_accepted() -> None:
    assert [row for row in graded(equal_pairs(10_000, seed=1)) if row[2] != "pass"] == []
