"""The Markov chain of segment_study: its closed forms by hand, and a small real run."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from pipeline.config.research_schema import SegmentStudy
from pipeline.research.segment_study import exact_values, fitted, tokens_to_target

SMALL = SegmentStudy(lines=2, line_tokens=2, start_rate=0.3, target=0.6, batch=32, steps=200)


def test_the_values_are_the_chances_that_nothing_fails_any_more():
    rate = torch.tensor([0.5, 0.8, 0.9], dtype=torch.float64)
    values = exact_values(rate)
    for position in range(3):  # summed over every continuation
        chance = sum(
            math.prod(rate[position + i] if ok else 1 - rate[position + i] for i, ok in enumerate(rest))
            for rest in itertools.product((True, False), repeat=3 - position)
            if all(rest)
        )
        assert float(values[0, position]) == pytest.approx(float(chance))
    assert values[1].tolist() == [0, 0, 0]


def test_a_table_moves_towards_the_mean_return_of_the_states_that_were_visited():
    values = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    state = torch.tensor([[0, 0], [0, 1], [0, 1]])
    returns = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.5, 1.0]], dtype=torch.float64)
    # state 0: means 0.5 and 1; state 1: never at the first token, mean 0.5 at the second
    assert fitted(values, state, returns, rate=0.5).tolist() == [[0.25, 1.0], [0.5, 0.5]]


@pytest.mark.parametrize("critic", ["exact", "learned", "blind"])
@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_every_step_of_credit_reaches_the_target_on_a_short_chain(critic: str, tokens: int):
    spent = tokens_to_target(SMALL, tokens, critic=critic, seed=3)
    assert 0 < spent < 200 * 32 * 4 and spent % (32 * 4) == 0
    assert spent == tokens_to_target(SMALL, tokens, critic=critic, seed=3), "a function of the seed"


def test_a_target_that_is_not_reached_has_no_figure():
    assert math.isnan(tokens_to_target(replace(SMALL, steps=1, target=0.99), 1, critic="exact", seed=1))
    assert tokens_to_target(replace(SMALL, target=0.2), 1, critic="exact", seed=1) == 0
