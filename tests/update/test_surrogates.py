"""DPPO, SAPO, VESPO, KL-Cov, Clip-Cov and the rules that leave out tokens, against hand arithmetic.

SAPO, VESPO, LUSPO, the off-policy mask and the choice by entropy are held against TRL's trainer in
test_losses_vs_trl.py.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.update.losses import clipped_surrogate
from pipeline.update.surrogates import (
    clip_cov_surrogate,
    covariance,
    dppo_surrogate,
    highest,
    in_band,
    kl_cov_surrogate,
    off_policy_keep,
    outside_trust_region,
    sapo_surrogate,
    sequence_keep,
    top_entropy,
    vespo_surrogate,
)

NAN = float("nan")
NONE = torch.zeros(1, 1)
SURROGATES: dict[str, Any] = {
    "dppo tv": lambda *rows: dppo_surrogate(*rows, clip_low=0.15, clip_high=0.15),
    "dppo kl": lambda *rows: dppo_surrogate(*rows, clip_low=0.05, clip_high=0.05, divergence="kl"),
    "sapo": lambda *rows: sapo_surrogate(*rows, tau_positive=1.0, tau_negative=1.05),
    "vespo": lambda *rows: vespo_surrogate(*rows, positive=(2.0, 3.0), negative=(3.0, 2.0)),
    "kl_cov": lambda *rows: kl_cov_surrogate(*rows, chosen_BT=torch.zeros_like(rows[0]), coef=1.0),
    "clip_cov": lambda *rows: clip_cov_surrogate(
        *rows, chosen_BT=torch.zeros_like(rows[0]), clip_low=0.2, clip_high=0.2
    ),
}
every = pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES.keys())


def log(*values: float) -> Tensor:
    return torch.tensor([values]).log()


@every
def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient(surrogate: Any) -> None:
    logprobs_BT = log(0.5, 0.2, 0.9).requires_grad_()
    advantages_BT = torch.tensor([[1.5, -0.5, 1.0]])
    surrogate(logprobs_BT, logprobs_BT.detach(), advantages_BT, torch.ones(1, 3).bool()).sum().backward()
    torch.testing.assert_close(logprobs_BT.grad, -advantages_BT)


@every
def test_what_is_masked_is_never_read(surrogate: Any) -> None:
    logprobs_BT = torch.tensor([[-1.0, NAN, -0.5]], requires_grad=True)
    loss_BT = surrogate(logprobs_BT, torch.tensor([[-1.1, NAN, -0.7]]), torch.tensor([[1.0, NAN, 1.0]]),
                        torch.tensor([[True, False, True]]))  # fmt: skip
    loss_BT.sum().backward()
    assert float(loss_BT.detach()[0, 1]) == 0 and bool(logprobs_BT.grad.isfinite().all())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("before", "now", "advantage", "divergence", "outside"),
    [
        (0.5, 0.7, 1.0, "tv", True),  # 0.2 > 0.15
        (0.5, 0.7, -1.0, "tv", False),  # moves up although the advantage pulls down: back on its way
        (0.5, 0.3, -1.0, "tv", True),
        (0.5, 0.3, 1.0, "tv", False),
        (0.001, 0.01, 1.0, "tv", False),  # ten times as likely, which a ratio clip would cut off
        (0.9, 0.99, 1.0, "tv", False),
        # KL(0.5 || 0.7) = 0.5 log(0.5/0.7) + 0.5 log(0.5/0.3) = 0.0872
        (0.5, 0.7, 1.0, "kl", True),
        # KL(0.5 || 0.6) = 0.5 log(0.5/0.6) + 0.5 log(0.5/0.4) = 0.0204
        (0.5, 0.6, 1.0, "kl", False),
        (0.5, 0.3, -1.0, "kl", True),
    ],
)
def test_a_token_leaves_the_trust_region_by_its_divergence(
    before: float, now: float, advantage: float, divergence: Any, outside: bool
) -> None:
    limit = {"tv": 0.15, "kl": 0.05}[divergence]
    low_BT, high_BT = outside_trust_region(
        log(now), log(before), torch.tensor([[advantage]]), torch.ones(1, 1).bool(), clip_low=limit, clip_high=limit,
        divergence=divergence,
    )  # fmt: skip
    assert bool(low_BT | high_BT) is outside
    assert not (bool(low_BT) and advantage > 0) and not (bool(high_BT) and advantage < 0)


def test_the_binary_kl_is_that_of_torch_between_two_coins() -> None:
    before, now = 0.4, 0.55
    coin = torch.distributions.Bernoulli
    kl = float(torch.distributions.kl_divergence(coin(torch.tensor(before)), coin(torch.tensor(now))))
    for limit, outside in ((kl * 0.999, True), (kl * 1.001, False)):
        _, high_BT = outside_trust_region(
            log(now), log(before), torch.ones(1, 1), torch.ones(1, 1).bool(), clip_low=limit, clip_high=limit,
            divergence="kl",
        )  # fmt: skip
        assert bool(high_BT) is outside


def test_dppo_weighs_by_the_truncated_ratio() -> None:
    """Ratios 1.1 and 60, advantage -1: weights 1.1 and 20; neither moved down, so both stay."""
    logprobs_BT = log(0.55, 0.006).requires_grad_()
    old_BT, mask_BT = log(0.5, 0.0001), torch.ones(1, 2).bool()
    dppo_surrogate(logprobs_BT, old_BT, -torch.ones(1, 2), mask_BT, clip_low=0.15, clip_high=0.15).sum().backward()
    torch.testing.assert_close(logprobs_BT.grad, torch.tensor([[1.1, 20.0]]))


def test_sapo_gate_at_ratio_two() -> None:
    """4 sigmoid(1) for tau 1, 4 / 1.05 sigmoid(1.05) for tau 1.05, by hand: 2.924234, 2.821845."""
    mask_BT = torch.ones(1, 2).bool()
    loss_BT = sapo_surrogate(log(0.4, 0.4), log(0.2, 0.2), torch.tensor([[1.0, -1.0]]), mask_BT,
                             tau_positive=1.0, tau_negative=1.05)  # fmt: skip
    expected = [-4 / (1 + math.exp(-1)), 4 / 1.05 / (1 + math.exp(-1.05))]
    torch.testing.assert_close(loss_BT, torch.tensor([expected]))


def test_vespo_weight_is_of_the_whole_sequence_and_falls_on_both_sides() -> None:
    """W = 1.5 * 1.2 = 1.8: 1.8^2 exp(3 (1 - 1.8)) = 0.293928 for A > 0; 1.8^3 exp(2 (1 - 1.8)) = 1.177457 else."""
    mask_BT = torch.ones(2, 2).bool()
    logprobs_BT = log(0.3, 0.6).repeat(2, 1).requires_grad_()
    old_BT = log(0.2, 0.5).repeat(2, 1)
    vespo_surrogate(logprobs_BT, old_BT, torch.tensor([[1.0], [-1.0]]).expand(2, 2), mask_BT,
                    positive=(2.0, 3.0), negative=(3.0, 2.0)).sum().backward()  # fmt: skip
    expected = [[-(1.8**2) * math.exp(-2.4)] * 2, [1.8**3 * math.exp(-1.6)] * 2]
    torch.testing.assert_close(logprobs_BT.grad, torch.tensor(expected))


def test_kl_cov_adds_the_absolute_log_ratio_on_the_chosen_tokens_only() -> None:
    loss_BT = kl_cov_surrogate(log(0.4, 0.4), log(0.2, 0.2), torch.ones(1, 2), torch.ones(1, 2).bool(),
                               chosen_BT=torch.tensor([[1.0, 0.0]]), coef=0.5)  # fmt: skip
    torch.testing.assert_close(loss_BT, torch.tensor([[-2 + 0.5 * math.log(2), -2.0]]))


def test_clip_cov_is_the_clipped_loss_without_the_chosen_tokens() -> None:
    rows = (log(0.4, 0.3), log(0.2, 0.29), torch.ones(1, 2), torch.ones(1, 2).bool())
    loss_BT = clip_cov_surrogate(*rows, chosen_BT=torch.tensor([[0.0, 1.0]]), clip_low=0.2, clip_high=0.2)
    clipped_BT = clipped_surrogate(*rows, clip_low=0.2, clip_high=0.2)
    assert loss_BT.tolist() == [[float(clipped_BT[0, 0]), 0.0]]


def test_the_covariance_of_log_prob_and_advantage_over_the_valid_tokens() -> None:
    """Log-probs -1, -3 (mean -2), advantages 2, 0 (mean 1): products 1 and 1. Their mean is the covariance."""
    mask_BT = torch.tensor([[True, True, False]])
    covariance_BT = covariance(torch.tensor([[-1.0, -3.0, NAN]]), torch.tensor([[2.0, 0.0, 9.0]]), mask_BT)
    assert covariance_BT.tolist() == [[1.0, 1.0, -math.inf]]


def test_the_choice_by_covariance_takes_a_share_of_the_valid_tokens_and_at_least_one() -> None:
    covariance_BT = torch.tensor([[0.1, 4.0, -math.inf, 2.0], [6.0, 1.5, -1.0, 0.5]])
    assert highest(covariance_BT, share=0.3).nonzero().tolist() == [[0, 1], [1, 0]]
    assert highest(covariance_BT, share=1e-6).nonzero().tolist() == [[1, 0]]
    band = {"low": 1.0, "high": 5.0}
    drawn = set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        chosen_BT = in_band(covariance_BT, share=1e-6, generator=generator, **band)
        drawn |= {tuple(index) for index in chosen_BT.nonzero().tolist()}
    assert drawn == {(0, 1), (0, 3), (1, 1)}
    assert not in_band(covariance_BT, low=7, high=9, share=1.0, generator=torch.Generator()).any()


def test_a_sequence_left_far_behind_is_masked_only_with_a_negative_advantage() -> None:
    """Mean log(old / now): log 2 in the first two rows, which exceeds 0.5, and log 1.2 in the third."""
    old_BT, now_BT = log(0.4, 0.4).repeat(3, 1), torch.tensor([[0.2, 0.2], [0.2, 0.2], [1 / 3, 1 / 3]]).log()
    advantages_BT = torch.tensor([[-1.0], [1.0], [-1.0]]).expand(3, 2)
    keep_BT = off_policy_keep(now_BT, old_BT, advantages_BT, torch.ones(3, 2).bool(), limit=0.5)
    assert keep_BT[:, 0].tolist() == [False, True, True]


def test_sequences_are_rejected_by_the_geometric_mean_of_the_ratio_and_by_k3() -> None:
    """Ratios (1.1, 1/1.1): mean 1, k3 0.0045. (1.01, 1.01): mean 1.01, k3 0.00005. The third row is masked."""
    generator_BT = torch.full((3, 2), math.log(0.3))
    ratio_BT = torch.tensor([[1.1, 1 / 1.1], [1.01, 1.01], [9.0, 9.0]])
    mask_BT = torch.tensor([[True, True], [True, True], [False, False]])
    rows = (generator_BT + ratio_BT.log(), generator_BT, mask_BT)
    assert sequence_keep(*rows, ratio_low=0.999, ratio_high=1.001).tolist() == [True, False, True]
    assert sequence_keep(*rows, k3_high=0.001).tolist() == [False, True, True]
    assert sequence_keep(*rows).all()
    # the k3 of row 0: mean over tokens of r - 1 - log r
    k3 = ((1.1 - 1 - math.log(1.1)) + (1 / 1.1 - 1 + math.log(1.1))) / 2
    for limit, kept in ((k3 * 1.01, True), (k3 * 0.99, False)):
        assert bool(sequence_keep(*rows, k3_high=limit)[0]) is kept


def test_the_share_of_highest_entropy_is_of_valid_tokens() -> None:
    entropy_BT = torch.tensor([[0.1, 0.9, 5.0], [0.5, 0.2, 0.7]])
    mask_BT = torch.tensor([[True, True, False], [True, True, True]])
    assert top_entropy(entropy_BT, mask_BT, share=0.4).nonzero().tolist() == [[0, 1], [1, 2]]
    assert top_entropy(entropy_BT, mask_BT, share=1.0).equal(mask_BT)
    assert not top_entropy(entropy_BT, torch.zeros(2, 3).bool(), share=0.4).any()
