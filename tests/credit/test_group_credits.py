"""MaxRL, GDPO, pass@k and the token baseline against hand arithmetic, enumeration and their invariants.

GDPO against TRL's own trainer is in tests/update/test_losses_vs_trl.py.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from pipeline.credit.advantages import group_advantages
from pipeline.credit.group_credits import (
    decoupled,
    maximum_likelihood,
    optimal_token_baseline,
    pass_at_k,
    token_energy,
)

NAN = float("nan")


def test_maxrl_gives_a_hard_prompt_as_much_weight_as_an_easy_one() -> None:
    advantages_PG = maximum_likelihood(torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]))
    expected = [[3, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1], [0, 0, 0, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(advantages_PG, torch.tensor(expected))
    # the sum of the successes' weights per prompt: 1/K of each success, G/K - 1 each, grows as successes become rare
    assert float(advantages_PG[0].clamp(min=0).sum()) > float(advantages_PG[1].clamp(min=0).sum())


def test_maxrl_is_an_unbiased_gradient_of_the_truncated_log_of_the_success_rate() -> None:
    """One prompt, success with probability p. Expected weight on the score of p over all outcomes of G = 3 samples is
    the derivative of -sum over k of (1 - p)^k / k for k up to 3: 1 + (1 - p) + (1 - p)^2."""
    p = 0.3
    expected = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=3):
        chance = math.prod(p if r else 1 - p for r in outcome)
        scores = [1 / p if r else -1 / (1 - p) for r in outcome]
        weights = maximum_likelihood(torch.tensor([outcome], dtype=torch.float64))[0].tolist()
        expected += chance * sum(w * s for w, s in zip(weights, scores, strict=True)) / 3
    # the baseline - 1/G of all scores has mean 0 only over outcomes with a success: its mean is removed by hand
    missing = (1 - p) ** 3 * (-1 / (1 - p)) * -1
    assert expected == pytest.approx(1 + (1 - p) + (1 - p) ** 2 - missing)


def test_maxrl_refuses_negative_rewards_and_leaves_out_unscorable_ones() -> None:
    with pytest.raises(ValueError, match=r"a reward of -0\.5: maxrl divides"):
        maximum_likelihood(torch.tensor([[1.0, -0.5]]))
    torch.testing.assert_close(maximum_likelihood(torch.tensor([[1.0, NAN, 0.0]])), torch.tensor([[1.0, 0.0, -1.0]]))


def test_gdpo_of_one_part_has_the_order_of_grpo_and_unit_variance() -> None:
    rewards_PG = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]])
    ours_PG = decoupled(rewards_PG[None], [1.0])
    plain_PG = group_advantages(rewards_PG, scale=True)
    torch.testing.assert_close(ours_PG, (plain_PG - plain_PG.mean()) / (plain_PG.std() + 1e-4))
    assert float(ours_PG.std()) == pytest.approx(1.0, abs=2e-4)


def test_gdpo_distinguishes_what_the_sum_of_rewards_makes_equal() -> None:
    """(0, 1) and (0, 2) have the same GRPO advantages: the group's std takes the size of the difference away."""
    first, second = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    summed_PG = group_advantages(first + second, scale=True)
    torch.testing.assert_close(summed_PG[0], summed_PG[1], rtol=0, atol=1e-3)
    apart_PG = decoupled(torch.stack([first, second]), [1.0, 1.0])
    assert float(apart_PG[1, 1]) == pytest.approx(2 * float(apart_PG[0, 1]), rel=1e-4)


def test_gdpo_leaves_out_a_row_with_a_broken_part() -> None:
    parts = torch.tensor([[[1.0, 0.0, 1.0]], [[0.5, 0.0, NAN]]])
    out_PG = decoupled(parts, [1.0, 1.0])
    assert float(out_PG[0, 2]) == 0 and float(out_PG[0, 0]) > 0 > float(out_PG[0, 1])


@pytest.mark.parametrize("rewards", [[1.0, 0.0, 0.0, 0.0, 1.0], [0.2, 0.9, 0.9, -1.0, 0.4]])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_pass_at_k_equals_the_enumeration_of_all_sets(rewards: list[float], k: int) -> None:
    expected = []
    for i in range(len(rewards)):
        sets = [s for s in itertools.combinations(range(len(rewards)), k) if i in s]
        gains = [max(rewards[j] for j in s) - max(rewards[j] for j in s if j != i) for s in sets]
        expected.append(k * sum(gains) / len(sets))
    torch.testing.assert_close(pass_at_k(torch.tensor([rewards]), k=k)[0], torch.tensor(expected))


def test_pass_at_k_pays_only_successes_and_the_rarer_they_are_the_more() -> None:
    rare, common = pass_at_k(torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0]]), k=2)
    assert rare.tolist() == [2.0, 0.0, 0.0, 0.0]
    torch.testing.assert_close(common, torch.tensor([2 / 3, 2 / 3, 2 / 3, 0.0]))


def test_pass_at_k_without_enough_scorable_samples_or_with_a_k_beyond_the_group() -> None:
    assert pass_at_k(torch.tensor([[1.0, NAN, NAN, 0.0]]), k=3).tolist() == [[0.0] * 4]
    with pytest.raises(ValueError, match="k must be from 2 to the group size"):
        pass_at_k(torch.tensor([[1.0, 0.0]]), k=3)


def grouped(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def test_the_token_baseline_weighs_returns_by_the_energy_so_far() -> None:
    """Two answers of two tokens, returns 1 and 0, energies (1, 1) and (3, 0): W = (1, 2) and (3, 3)."""
    mask_BT = torch.ones(2, 2).bool()
    advantages_BT = optimal_token_baseline(grouped([0, 1], [0, 0]), grouped([1, 1], [3, 0]), mask_BT, group=2)
    torch.testing.assert_close(advantages_BT, grouped([1 - 1 / 4, 1 - 2 / 5], [-1 / 4, -2 / 5]))


def test_where_one_answer_goes_on_alone_there_is_no_baseline() -> None:
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    advantages_BT = optimal_token_baseline(grouped([0, 0, 1], [0, 0, 0]), torch.ones(2, 3), mask_BT, group=2)
    torch.testing.assert_close(advantages_BT, grouped([0.5, 1, 1], [-0.5, 0, 0]))


def test_equal_energies_give_the_mean_return_and_shifts_do_not_matter() -> None:
    rewards_BT, mask_BT = grouped([0, 1.0], [0, 0], [0, 0.25]), torch.ones(3, 2).bool()
    advantages_BT = optimal_token_baseline(rewards_BT, torch.ones(3, 2), mask_BT, group=3)
    torch.testing.assert_close(advantages_BT[:, 0], torch.tensor([1.0, 0.0, 0.25]) - 1.25 / 3)
    shifted_BT = rewards_BT + grouped([0, 5.0], [0, 5.0], [0, 5.0])
    torch.testing.assert_close(
        optimal_token_baseline(shifted_BT, torch.ones(3, 2), mask_BT, group=3), advantages_BT, rtol=0, atol=1e-5
    )


def test_token_energy_is_the_squared_norm_of_the_gradient_of_the_log_prob() -> None:
    logits_V = torch.tensor([0.3, -1.0, 2.0, 0.5], requires_grad=True)
    logprobs_V = logits_V.log_softmax(0)
    (gradient_V,) = torch.autograd.grad(logprobs_V[2], logits_V)
    energy = token_energy(logprobs_V[2].detach(), logprobs_V.detach().exp().square().sum())
    assert float(energy) == pytest.approx(float(gradient_V.square().sum()))
