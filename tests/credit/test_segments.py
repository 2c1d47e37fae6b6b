"""Segments as single steps of credit, against hand arithmetic and a hand-made Markov chain."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pipeline.credit import advantages, segments

nan = math.nan


def mask(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows).bool()


def test_a_segment_ends_with_its_marked_token_and_at_every_gap_of_the_mask():
    ends = mask([0, 1, 0, 0, 0, 1, 0], [1, 0, 1, 1, 0, 0, 0])
    valid = mask([1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0])
    assert segments.segments_of_ends(ends, valid).tolist() == [[0, 0, 1, -1, 2, 2, 3], [0, 1, 1, 2, -1, -1, -1]]


def test_a_mark_outside_the_mask_ends_nothing():
    assert segments.segments_of_ends(mask([0, 0, 1]), mask([1, 1, 0])).tolist() == [[0, 0, -1]]


def test_fixed_segments_are_counted_from_the_start_of_each_run():
    ends = segments.fixed_ends(mask([1, 1, 1, 1, 0, 1, 1, 1]), tokens=2)
    assert ends.int().tolist() == [[0, 1, 0, 1, 0, 0, 1, 0]]
    assert segments.fixed_ends(mask([1, 1, 1]), tokens=1).all()
    with pytest.raises(ValueError, match="0 tokens"):
        segments.fixed_ends(mask([1]), tokens=0)


def test_a_peak_of_surprise_begins_a_segment():
    # surprises 1 3 2 0 4 4 0: the mean is 2; peaks at 1 (3) and at 4 (4, as high as what follows)
    logprobs = -torch.tensor([[1.0, 3.0, 2.0, 0.0, 4.0, 4.0, 0.0]])
    ends = segments.peak_ends(logprobs, torch.ones(1, 7).bool())
    assert ends.int().tolist() == [[1, 0, 0, 1, 0, 0, 0]]


def test_what_lies_outside_the_mask_makes_no_peak():
    logprobs = -torch.tensor([[1.0, 3.0, nan, 2.0, 0.0]])
    ends = segments.peak_ends(logprobs, mask([1, 1, 0, 1, 1]))  # the token after the gap begins a segment anyway
    assert ends.int().tolist() == [[1, 0, 0, 0, 0]]


def test_the_value_prefix_is_what_the_segment_earned_before_the_token():
    numbers = torch.tensor([[0, 0, 0, -1, 1, 1], [0, 1, 1, 2, 2, -1]])
    rewards = torch.tensor([[1.0, 2.0, 4.0, nan, 8.0, 16.0], [1.0, 2.0, 4.0, 8.0, 16.0, 0.0]])
    assert segments.earned_so_far(rewards, numbers).tolist() == [[0, 1, 3, 0, 0, 8], [0, 0, 2, 0, 8, 0]]


def test_first_tokens_and_their_values_spread_over_a_segment():
    numbers = torch.tensor([[0, 0, -1, 1, 2, 2]])
    assert segments.first_tokens(numbers).int().tolist() == [[1, 0, 0, 1, 1, 0]]
    spread = segments.spread_from_start(torch.tensor([[5.0, 1.0, 9.0, 6.0, 7.0, 2.0]]), numbers)
    assert spread.tolist() == [[5, 5, 0, 6, 7, 7]]


def test_branch_points_are_spread_evenly_over_the_starts():
    assert segments.evenly_chosen([3, 9, 12], 4) == [3, 9, 12]
    assert segments.evenly_chosen(list(range(10)), 2) == [2, 7]
    assert segments.evenly_chosen([5, 6, 7], 1) == [6]


# --- GAE over segments -----------------------------------------------------------------------------------------------


def test_gae_over_segments_is_gae_over_their_summed_rewards_and_first_values():
    rewards = torch.tensor([[1.0, 2.0, 0.0, 4.0, 3.0]])
    values = torch.tensor([[10.0, -99.0, 20.0, -99.0, 30.0]])  # those within a segment are not read
    numbers = torch.tensor([[0, 0, 1, 1, 2]])
    gamma, lam = 0.5, 0.8
    given, returns = advantages.turn_gae(
        rewards, values, torch.ones(1, 5).bool(), gamma=gamma, lam=lam, turns_BT=numbers
    )
    d2 = 3.0 - 30.0
    d1 = 4.0 + gamma * 30.0 - 20.0
    d0 = 3.0 + gamma * 20.0 - 10.0
    a2, a1 = d2, d1 + gamma * lam * d2
    a0 = d0 + gamma * lam * a1
    assert given[0].tolist() == pytest.approx([a0, a0, a1, a1, a2], abs=1e-5)
    assert returns[0].tolist() == pytest.approx([a0 + 10, a0 + 10, a1 + 20, a1 + 20, a2 + 30], abs=1e-5)


def test_segments_of_one_token_are_plain_gae_and_one_segment_is_the_sequence():
    generator = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, 6, generator=generator), torch.randn(2, 6, generator=generator)
    valid = mask([1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0])
    each = segments.segments_of_ends(segments.fixed_ends(valid, tokens=1), valid)
    by_segment = advantages.turn_gae(rewards, values, valid, gamma=0.9, lam=0.7, turns_BT=each)
    plain = advantages.gae(rewards, values, valid, gamma=0.9, lam=0.7)
    torch.testing.assert_close(by_segment, plain)
    row = torch.tensor([[0, 0, 0, 0, -1, -1]])
    whole, _ = advantages.turn_gae(rewards[1:], values[1:], valid[1:], gamma=0.9, lam=0.7, turns_BT=row)
    total = float(rewards[1, :4].sum() - values[1, 0])
    assert whole[0, :4].tolist() == pytest.approx([total] * 4, abs=1e-6)


def test_segment_credit_is_an_unbiased_gradient_on_a_markov_chain_whose_values_are_wrong():
    """Two segments of two binary tokens with P(1) = p; the first earns 1 if both are 1, the second 2 if its last is 1.

    dE/dp in closed form: E = p^2 + 2p, so dE/dp = 2p + 2. With lambda 1 any value at the start of a segment leaves the
    mean of sum A * dlog P / dp at it; a value that had read the segment's own tokens would not.
    """
    p, numbers = 0.3, torch.tensor([[0, 0, 1, 1]])
    total = 0.0
    for tokens in itertools.product((0, 1), repeat=4):
        chance = math.prod(p if t else 1 - p for t in tokens)
        rewards = torch.tensor([[0.0, float(tokens[0] & tokens[1]), 0.0, 2.0 * tokens[3]]], dtype=torch.float64)
        values = torch.tensor([[0.4, -5.0, 7.0 + tokens[0], 3.0]], dtype=torch.float64)  # wrong, but of the past alone
        given, _ = advantages.turn_gae(rewards, values, torch.ones(1, 4).bool(), gamma=1.0, lam=1.0, turns_BT=numbers)
        score = [1 / p if t else -1 / (1 - p) for t in tokens]
        total += chance * sum(a * s for a, s in zip(given[0].tolist(), score, strict=True))
    assert total == pytest.approx(2 * p + 2, abs=1e-9)


# --- group credit over segments --------------------------------------------------------------------------------------


def test_group_credit_gives_every_token_of_a_segment_the_reward_from_its_start_on():
    rewards = torch.tensor([[1.0, 2.0, 0.0, 4.0], [0.0, 0.0, 0.0, 3.0]])
    numbers = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    given = advantages.reward_to_go_advantages(
        rewards, torch.ones(2, 4).bool(), group=2, baseline="group", scale=False, segments_BT=numbers
    )
    # to go at the starts: 7 and 4 in row 0, 3 and 3 in row 1; the mean total is (7 + 3) / 2 = 5
    assert given.tolist() == [[2.0, 2.0, -1.0, -1.0], [-2.0, -2.0, -2.0, -2.0]]
    by_token = advantages.reward_to_go_advantages(
        rewards, torch.ones(2, 4).bool(), group=2, baseline="group", scale=False
    )
    assert by_token[0].tolist() == [2.0, 1.0, -1.0, -1.0]
