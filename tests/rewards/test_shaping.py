"""Rewards of length, repetition, format and progress, by hand and by what they must leave alone."""

from __future__ import annotations

import math
import random

import pytest
from reward_rows import batch_of

import rewards
from rewards import Batch, build
from rewards.steps import potential_differences


def test_repetition_is_the_share_of_repeated_ngrams_as_counted_by_hand() -> None:
    score = rewards.repetition(ngram=2)
    # 1 2 1 2 1: bigrams 12 21 12 21, two of four are new
    assert score(None, None, [[1, 2, 1, 2, 1], [1, 2, 3], [5], [], [9] * 11]) == [-0.5, 0.0, 0.0, 0.0, -0.9]


def test_the_missing_eos_penalty_falls_on_exactly_the_truncated_rows() -> None:
    batch = batch_of(["a", "b", "c"], finished=[True, False, True])
    assert [s.reward for s in build({"missing_eos": {"weight": 0.5}}).score(batch)] == [0.0, -0.5, 0.0]
    by_ids = rewards.missing_eos(eos_token_ids=[8, 9])
    assert by_ids(None, None, [[1, 9], [9, 1], [8], []]) == [0.0, -1.0, 0.0, -1.0]
    with pytest.raises(ValueError, match="eos_token_ids"):
        rewards.missing_eos()(None, None, [[1]])
    # under TRL's trainers, which send no `finished`, a composite reads the ids too and claims nothing without them
    ids = [[1, 9], [9, 1]]
    assert build({"missing_eos": {"eos_token_ids": [9]}})(["p"] * 2, ["a", "b"], ids) == [0.0, -1.0]
    assert build({"missing_eos": None})(["p"] * 2, ["a", "b"], ids) == [None, None]


def test_the_format_part_scores_tags_and_leaves_the_status_alone() -> None:
    scores = build({"format": None}).score(batch_of(["<think>x</think><answer>y</answer>", "y"]))
    assert [(s.reward, s.status) for s in scores] == [(1.0, "pass"), (0.0, "pass")]


def test_random_is_a_function_of_the_sample_and_not_of_its_company() -> None:
    texts = [f"answer {i}" for i in range(2000)]
    batch = batch_of(texts)
    uniform = [s.reward for s in build({"random": {"seed": 3}}).score(batch)]
    order = random.Random(0).sample(range(2000), 2000)
    names = ("prompts", "prompt_ids", "completions", "completion_ids", "finished", "tasks")
    shuffled = Batch(**{name: [getattr(batch, name)[i] for i in order] for name in names})
    again = [s.reward for s in build({"random": {"seed": 3}}).score(shuffled)]
    assert [uniform[i] for i in order] == again
    assert abs(sum(uniform) / 2000 - 0.5) < 4 * math.sqrt(1 / 12 / 2000)
    assert uniform != [s.reward for s in build({"random": {"seed": 4}}).score(batch)]
    rate = sum(s.reward for s in build({"random": {"pass_rate": 0.2}}).score(batch)) / 2000
    assert abs(rate - 0.2) < 4 * math.sqrt(0.16 / 2000)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_potential_rewards_telescope_to_a_constant_of_the_start(gamma: float) -> None:
    rng = random.Random(1)
    for n in (1, 2, 5, 9):
        potentials = [2.0] + [rng.uniform(-5, 5) for _ in range(n - 1)]
        shaped = potential_differences(potentials, gamma=gamma)
        assert math.fsum(gamma**t * reward for t, reward in enumerate(shaped)) == pytest.approx(-2.0)


def test_potential_shaping_keeps_the_best_policy_where_a_plain_bonus_changes_it() -> None:
    """A chain 0-1-2-3, +1 on reaching 3; a bonus for entering 2 makes circles best, the potential does not."""
    phi, gamma = [0.0, 1.0, 5.0, 0.0], 0.9

    def best_first_moves(bonus: object) -> list[int]:
        values = [0.0] * 4
        for _ in range(500):
            q = [
                [
                    bonus(s, t) + float(t == 3) + gamma * (values[t] if t != 3 else 0.0)  # type: ignore[operator]
                    for t in (max(s - 1, 0), s + 1)
                ]
                for s in range(3)
            ]
            values = [max(row) for row in q] + [0.0]
        return [row.index(max(row)) for row in q]

    def potential(s: int, t: int) -> float:
        after = [phi[s], phi[t]] if t != 3 else [phi[s]]
        return potential_differences(after, gamma=gamma)[0]

    assert best_first_moves(lambda s, t: 0.0) == [1, 1, 1]
    assert best_first_moves(lambda s, t: 5.0 * (t == 2)) != [1, 1, 1]
    assert best_first_moves(potential) == [1, 1, 1]


def halving(prompt: str, completion: str, completion_ids: list[int], task: dict) -> list[tuple[int, float]]:
    if completion == "raise":
        raise RuntimeError("no potential")
    if completion == "outside":
        return [(99, 1.0)]
    return [(i, 2.0**-i) for i in range(len(completion_ids))]


def test_step_rewards_land_on_their_tokens_weighted_and_leave_the_reward_alone() -> None:
    block = {"potential": {"path": f"{__name__}:halving", "weight": 2.0}}
    scores = build(block).score(batch_of(["abc", "raise", "outside"]))
    assert scores[0].reward == 0.0
    assert scores[0].step_rewards == ((0, -1.0), (1, -0.5), (2, -0.5))
    assert [s.status for s in scores] == ["pass", "error", "error"]
