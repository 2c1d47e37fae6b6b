"""More credits from the samples of one prompt: MaxRL, GDPO, pass@k, and a baseline per token.

Axes: see pipeline/credit/__init__.py; N reward parts. NaN = not scorable: it gets 0 and counts in nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor

from pipeline.credit.advantages import STD_EPS, discounted_returns, group_advantages

ENERGY_EPS = 1e-8  # added to a sum of energies, as in the authors' code


@torch.no_grad()
def maximum_likelihood(rewards_PG: Tensor) -> Tensor:
    """(reward - mean) / mean of its group: the gradient of log(success rate) instead of that of the success rate.

    rewards_PG: (P, G), success indicators or rewards that are never negative. With K successes of G the gradient is the
    mean of the successes' score functions minus that of all samples; a hard prompt counts as much as an easy one.
    Returns (P, G), zero mean per row; all zeros for a group without success.
    Raises ValueError if G < 2, or a reward is negative or infinite: a mean near 0 would then mean nothing.
    Source: MaxRL, arXiv:2602.02710, the estimator with a baseline (binary rewards there; other rewards as in TRL).
    """
    if bool((rewards_PG < 0).any()):
        lowest = float(rewards_PG.nan_to_num(nan=0.0).min())
        raise ValueError(f"a reward of {lowest:g}: maxrl divides by the mean reward of a group, so rewards must not be "
                         "negative; use another credit.kind")  # fmt: skip
    mean_P1 = rewards_PG.double().nanmean(1, keepdim=True).nan_to_num(nan=0.0)
    centred_PG = group_advantages(rewards_PG.double(), scale=False)
    return torch.where(mean_P1 > 0, centred_PG / mean_P1.clamp(min=1e-12), 0.0).to(_float_dtype(rewards_PG))


@torch.no_grad()
def decoupled(parts_NPG: Tensor, weights: Sequence[float]) -> Tensor:
    """Each part's own group advantage, their weighted sum, and that normalised over the batch.

    parts_NPG: (N, P, G) the parts of the reward before their weights; NaN in any part = the row is not scorable.
    A part that varies little keeps its say beside one that varies much, which a sum before normalising takes from it.
    Returns (P, G) with mean 0 and standard deviation 1 over the scorable rows.
    Raises ValueError if G < 2.
    Source: GDPO, arXiv:2601.05242 (sample standard deviations, eps 1e-4 as in TRL's normalize_then_sum).
    """
    broken_PG = parts_NPG.isnan().any(0)
    parts_NPG = parts_NPG.double().masked_fill(broken_PG, torch.nan)
    normalised = [w * group_advantages(p_PG, scale=True) for w, p_PG in zip(weights, parts_NPG, strict=True)]
    sum_PG = torch.stack(normalised).sum(0)
    used_N = sum_PG[~broken_PG]
    if len(used_N) < 2:
        return torch.zeros_like(sum_PG).to(_float_dtype(parts_NPG))
    out_PG = (sum_PG - used_N.mean()) / (used_N.std() + STD_EPS)
    return out_PG.masked_fill(broken_PG, 0.0).float()


@torch.no_grad()
def pass_at_k(rewards_PG: Tensor, *, k: int) -> Tensor:
    """Policy-gradient weights of the best of k samples, the best of the same samples without this one as baseline.

    A_i = k * mean over sets S of k samples with i of [max of S - max of S without i]: what sample i adds. Its mean
    times the score functions is an unbiased gradient of E[max of k]. With rewards 0 and 1, a success gets k times the
    chance that k - 1 of the other samples all fail, and a failure 0. Zero mean is not implied.
    Returns (P, G). Groups with fewer than k scorable rewards get 0.
    Raises ValueError unless 2 <= k <= G.
    Source: PKPO, arXiv:2505.15201, the estimator s^(loo-1) (its weight here times G, since our loss is a mean over G).
    """
    if not 2 <= k <= rewards_PG.shape[1]:
        raise ValueError(f"pass@{k} credit in groups of {rewards_PG.shape[1]}: k must be from 2 to the group size")
    out_PG = torch.zeros_like(rewards_PG, dtype=torch.float64)
    for row, rewards_G in enumerate(rewards_PG.double()):
        scorable = (~rewards_G.isnan()).nonzero()[:, 0].tolist()
        if len(scorable) < k:
            continue
        sets = comb(len(scorable) - 1, k - 1)
        for i in scorable:
            others = sorted(float(rewards_G[j]) for j in scorable if j != i)
            # the set's other k - 1 members have others[rank] as their best in comb(rank, k - 2) of `sets` cases
            gains = (max(float(rewards_G[i]) - best, 0.0) * comb(rank, k - 2) for rank, best in enumerate(others))
            out_PG[row, i] = k * sum(gains) / sets
    return out_PG.to(_float_dtype(rewards_PG))


@torch.no_grad()
def optimal_token_baseline(rewards_BT: Tensor, energy_BT: Tensor, mask_BT: Tensor, *, group: int) -> Tensor:
    """Reward to go minus, at each position, the group's mean reward to go weighted by the rows' energy so far.

    b_t = sum of G_t W_t / sum of W_t over the group's rows that reach t, with W_t the sum of energy up to t. This
    baseline has the least variance of those that depend on t only. Where a single row goes on there is none.
    rewards_BT: (B, T), prompt-major with `group` rows per prompt. energy_BT: estimate of the squared norm of the
    gradient of each token's log-prob, see `token_energy`.
    Returns (B, T), 0 outside the mask.
    Source: OTB, arXiv:2602.07078; the rule for the longest row is read in the authors' code in verl.
    """
    mask_BT = mask_BT.bool()
    togo_BT = discounted_returns(rewards_BT.double(), mask_BT, gamma=1.0)
    energy_BT = energy_BT.double().masked_fill(~mask_BT, 0.0).cumsum(1).masked_fill(~mask_BT, 0.0)
    togo_PGT, energy_PGT = (x.view(-1, group, x.shape[1]) for x in (togo_BT, energy_BT))
    baseline_P1T = (togo_PGT * energy_PGT).sum(1, keepdim=True) / (energy_PGT.sum(1, keepdim=True) + ENERGY_EPS)
    alone_P1T = mask_BT.view_as(togo_PGT).sum(1, keepdim=True) < 2
    advantages_PGT = togo_PGT - baseline_P1T.masked_fill(alone_P1T, 0.0)
    return advantages_PGT.view_as(togo_BT).masked_fill(~mask_BT, 0.0).to(_float_dtype(rewards_BT))


def token_energy(logprobs_BT: Tensor, squares_BT: Tensor) -> Tensor:
    """1 - 2 p + the sum of p² over the vocabulary: squared norm of d log p / d logits. Source: arXiv:2602.07078."""
    return 1 - 2 * logprobs_BT.exp() + squares_BT


def _float_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
