"""Advantages from rewards that fall along the way, against brute force and the sequence forms they reduce to."""

import pytest
import torch

from pipeline.credit.advantages import global_baseline, group_advantages, leave_one_out, reward_to_go_advantages

torch.manual_seed(11)
P, G, T = 3, 4, 6
LENGTHS = torch.randint(1, T + 1, (P * G,))
MASK = torch.arange(T)[None] < LENGTHS[:, None]
REWARDS = torch.randn(P * G, T).masked_fill(~MASK, torch.nan)
ON_LAST = (torch.arange(T)[None] == LENGTHS[:, None] - 1) * torch.randn(P * G, 1)


def brute_force(rewards, mask, kind):
    """Unscaled, in plain Python over lists."""
    rows = [[float(r) if m else 0.0 for r, m in zip(rr, mm, strict=True)] for rr, mm in zip(rewards, mask, strict=True)]
    out = []
    for b, row in enumerate(rows):
        group = rows[b // G * G : b // G * G + G]
        others = [sum(r) for i, r in enumerate(group) if kind == "group" or i != b % G]
        base = sum(others) / len(others)
        out.append([sum(row[t:]) - base if mask[b][t] else 0.0 for t in range(T)])
    return torch.tensor(out)


@pytest.mark.parametrize("kind", ["group", "leave_one_out"])
def test_a_token_is_credited_with_what_is_still_to_come_less_what_its_group_earned(kind):
    got = reward_to_go_advantages(REWARDS, MASK, group=G, baseline=kind, scale=False)
    torch.testing.assert_close(got, brute_force(REWARDS, MASK, kind), atol=1e-5, rtol=1e-5)


def test_with_rewards_on_last_tokens_only_each_baseline_gives_its_sequence_form():
    totals_PG = ON_LAST.sum(1).view(P, G)
    spread = MASK.float()
    group = reward_to_go_advantages(ON_LAST, MASK, group=G, baseline="group", scale=False)
    torch.testing.assert_close(group, group_advantages(totals_PG, scale=False).view(-1, 1) * spread)
    others = reward_to_go_advantages(ON_LAST, MASK, group=G, baseline="leave_one_out", scale=False)
    torch.testing.assert_close(others, leave_one_out(totals_PG).view(-1, 1) * spread)
    whole = torch.ones_like(MASK)  # rows of one length, so that a token stands for its row
    last = torch.zeros(P * G, T)
    last[:, -1] = totals_PG.flatten()
    batch = reward_to_go_advantages(last, whole, group=G, baseline="global_baseline", scale=True)
    torch.testing.assert_close(batch, global_baseline(totals_PG).view(-1, 1).expand(-1, T), atol=1e-5, rtol=1e-5)


def test_scaled_advantages_have_unit_mean_square_over_a_groups_tokens():
    got = reward_to_go_advantages(REWARDS, MASK, group=G, baseline="group", scale=True).view(P, G, T)
    mask = MASK.view(P, G, T)
    for p in range(P):
        assert got[p][mask[p]].square().mean() == pytest.approx(1.0, abs=1e-3)


def test_a_group_that_fails_alike_is_distinguished_by_what_fell_on_the_way_without_exploding():
    rewards = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])  # equal totals: the plain group advantage is all 0
    got = reward_to_go_advantages(rewards, torch.ones(2, 2), group=2, baseline="group", scale=True)
    assert got[0, 1] < 0 < got[1, 1] and float(got.abs().max()) < 2.0


def test_a_potential_moves_no_total_and_becomes_a_baseline_of_its_state():
    """Shaping by Φ gives advantages score − mean + Φ(s0) − Φ(s_t): the gradient's expectation is unmoved."""
    phi = torch.tensor([[0.3, 0.1, 0.9], [0.3, 0.7, 0.2]])
    shaped = torch.cat([phi[:, 1:], torch.zeros(2, 1)], 1) - phi
    score = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    ones = torch.ones(2, 3)
    plain = reward_to_go_advantages(score, ones, group=2, baseline="group", scale=False)
    got = reward_to_go_advantages(score + shaped, ones, group=2, baseline="group", scale=False)
    torch.testing.assert_close(got - plain, phi[:, :1] - phi)


def test_a_row_without_a_valid_token_counts_in_no_baseline():
    mask = torch.tensor([[True, True], [True, True], [False, False]])
    rewards = torch.tensor([[0.0, 1.0], [0.0, 3.0], [torch.nan, torch.nan]])
    for kind, first in (("group", -1.0), ("leave_one_out", -2.0)):
        got = reward_to_go_advantages(rewards, mask, group=3, baseline=kind, scale=False)  # type: ignore[arg-type]
        assert got.tolist() == [[first, first], [-first, -first], [0.0, 0.0]]
    alone = reward_to_go_advantages(rewards[1:], mask[1:], group=2, baseline="leave_one_out", scale=False)
    assert alone.tolist() == [[0.0, 0.0], [0.0, 0.0]]
