"""The letters of surrogate_chain: the expected score against every answer, and real runs against each other."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pipeline.config.research_schema import SurrogateChain
from pipeline.research.surrogate_chain import expected_score, half_scores, learn

SMALL = SurrogateChain(letters=4, batch=16, steps=12, learning_rate=12.0)


def test_the_score_by_hand():
    assert half_scores([], ["RLRL", "RRRL", "RRRR", "LLLL"]) == [1.0, 0.5, 0.0, 0.0]


def test_the_expected_score_is_the_mean_over_all_answers():
    p = [0.1, 0.5, 0.8, 0.3]
    total = sum(
        math.prod(x if r else 1 - x for x, r in zip(p, answer, strict=True)) * (1 - abs(2 * sum(answer) / 4 - 1))
        for answer in itertools.product((0, 1), repeat=4)
    )
    assert expected_score(torch.tensor(p)) == pytest.approx(total)


def test_a_corrected_stand_in_learns_with_fewer_checks_and_a_frozen_one_checks_no_more():
    (full, _), (quarter, _), (frozen, _) = (learn(SMALL, name, seed=1) for name in ("full", "quarter", "frozen"))
    assert full.values[-1] > full.values[0] and quarter.values[-1] > quarter.values[0]
    assert full.checks[-1] == 12 * 16 and 20 < quarter.checks[-1] < 80
    assert frozen.checks_per_step[:4] == [16.0] * 4 and not any(frozen.checks_per_step[4:])
    assert learn(SMALL, "quarter", seed=1)[0].values == quarter.values, "a function of the seed"
