"""More surrogates, and rules that leave tokens or sequences out of the policy loss; each a small pure function.

Axes and conventions as in losses.py: (B, T), 0 outside the mask, to be minimised, only logprobs_BT gets gradient.
Where a paper's text was not available, the docstring names the public implementation that was read instead.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pipeline.update.losses import (
    bounded_log_ratio,
    check_choice,
    clipped_surrogate,
    kl_estimate,
    masked_sequence_mean,
    reinforce_surrogate,
    zero_outside,
)

Divergence = Literal["tv", "kl"]
MIN_LOG_WEIGHT, MAX_LOG_WEIGHT = math.log(1e-8), 20.0  # bounds of VESPO's log weight, as in the authors' code
SMALLEST = 1e-8  # of a probability under a logarithm


# --- surrogates ------------------------------------------------------------------------------------------------------


def dppo_surrogate(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    divergence: Divergence = "tv",
    ratio_max: float = 20.0,
) -> Tensor:
    """-min(ratio, ratio_max) * A * logprob on the tokens within a trust region of the divergence; 0 on the others.

    A token leaves the trust region as in `outside_trust_region`. The ratio has no gradient, so the gradient is that of
    -ratio * A. clip_low, clip_high: limits of the divergence, not of the ratio; old_logprobs_BT should be those of the
    policy that sampled (loss.old_policy: generator).
    Source: DPPO, arXiv:2602.04879 (binary TV and binary KL; the top-k variants are left out). The text of the paper was
    not available; read in verl's dppo_tv and dppo_kl, whose script sets 0.15 for tv and 0.05 for kl.
    """
    ratio_BT = bounded_log_ratio(logprobs_BT.detach(), old_logprobs_BT, mask_BT).exp().clamp(max=ratio_max)
    low_BT, high_BT = outside_trust_region(
        logprobs_BT, old_logprobs_BT, advantages_BT, mask_BT, clip_low=clip_low, clip_high=clip_high,
        divergence=divergence,
    )  # fmt: skip
    return reinforce_surrogate(logprobs_BT, ratio_BT * advantages_BT, mask_BT & ~low_BT & ~high_BT)


@torch.no_grad()
def outside_trust_region(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    divergence: Divergence,
) -> tuple[Tensor, Tensor]:
    """Two (B, T) bool: tokens that moved too far down with A <= 0, and those that moved too far up with A > 0.

    How far, from the probabilities p now and q before of the sampled token alone (sampled or not, a binary choice):
    tv = |p - q|; kl = q log(q / p) + (1 - q) log((1 - q) / (1 - p)). A token that moves back towards q stays.
    Source: DPPO, arXiv:2602.04879.
    """
    check_choice(divergence, Divergence, "divergence")
    now_BT, before_BT = zero_outside(logprobs_BT, mask_BT).exp(), zero_outside(old_logprobs_BT, mask_BT).exp()
    if divergence == "tv":
        distance_BT = (now_BT - before_BT).abs()
    else:
        others_BT = ((1 - before_BT).clamp(min=SMALLEST) / (1 - now_BT).clamp(min=SMALLEST)).log()
        log_ratio_BT = bounded_log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
        distance_BT = (1 - before_BT) * others_BT - before_BT * log_ratio_BT
    down_BT = (advantages_BT <= 0) & (now_BT < before_BT) & (distance_BT > clip_low)
    up_BT = (advantages_BT > 0) & (now_BT > before_BT) & (distance_BT > clip_high)
    return down_BT & mask_BT.bool(), up_BT & mask_BT.bool()


def sapo_surrogate(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    tau_positive: float,
    tau_negative: float,
) -> Tensor:
    """-f(ratio) * A with the soft gate f(x) = 4 / tau * sigmoid(tau * (x - 1)), tau by the sign of A.

    At ratio 1 the gradient is the plain policy gradient; away from it the weight falls smoothly, in both directions.
    Source: SAPO, arXiv:2511.20347 (tau 1.0 for A > 0, 1.05 else).
    """
    ratio_BT = bounded_log_ratio(logprobs_BT, old_logprobs_BT.detach(), mask_BT).exp()
    tau_BT = torch.where(advantages_BT > 0, tau_positive, tau_negative)
    gate_BT = 4 / tau_BT * torch.sigmoid(tau_BT * (ratio_BT - 1))
    return zero_outside(-gate_BT * advantages_BT.detach(), mask_BT)


def vespo_surrogate(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    positive: tuple[float, float],
    negative: tuple[float, float],
) -> Tensor:
    """-phi(W) * A * logprob, W the ratio of the whole sequence and phi(W) = W^k * exp(lambda * (1 - W)), no gradient.

    phi(1) = 1; both very small and very large W get a weight near 0. positive, negative: (k, lambda) by the sign of A.
    Source: VESPO, arXiv:2602.10693 §3.4 ((2, 3) for A >= 0, (3, 2) else).
    """
    log_ratio_BT = bounded_log_ratio(logprobs_BT.detach(), old_logprobs_BT, mask_BT)
    log_w_B1 = log_ratio_BT.sum(1, keepdim=True).clamp(MIN_LOG_WEIGHT, MAX_LOG_WEIGHT)
    gains_BT = advantages_BT >= 0
    k_BT, rate_BT = (torch.where(gains_BT, up, down) for up, down in zip(positive, negative, strict=True))
    weight_BT = (rate_BT + k_BT * log_w_B1 - rate_BT * log_w_B1.exp()).exp()
    return reinforce_surrogate(logprobs_BT, weight_BT * advantages_BT, mask_BT)


def kl_cov_surrogate(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    chosen_BT: Tensor,
    coef: float,
) -> Tensor:
    """-ratio * A, plus coef * |log ratio| on the chosen tokens: those whose covariance is largest, see `highest`.

    Unclipped, as in the authors' code; at ratio 1 the penalty has value 0 and gradient 0 or +-coef (taken as 0 here).
    Source: KL-Cov, arXiv:2505.22617; the absolute log ratio as its KL is read from the code (verl's kl_cov). The share
    differs by model there: the authors' scripts penalise 0.2% of the tokens of a 7B model and 0.02% of a 32B one (their
    `k_percent` is in percent). The preset follows the 7B script, since models trained here are that size or smaller;
    verl's `kl_cov_ratio` is a ratio and defaults to the other, 2e-4.
    """
    log_ratio_BT = bounded_log_ratio(logprobs_BT, old_logprobs_BT.detach(), mask_BT)
    penalty_BT = torch.where(chosen_BT.bool(), coef * log_ratio_BT.abs(), 0.0)
    return zero_outside(-log_ratio_BT.exp() * advantages_BT.detach() + penalty_BT, mask_BT)


def clip_cov_surrogate(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    chosen_BT: Tensor,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """The clipped surrogate with the chosen tokens left out: a few of those with a high covariance, see `in_band`.

    Source: Clip-Cov, arXiv:2505.22617.
    """
    loss_BT = clipped_surrogate(
        logprobs_BT, old_logprobs_BT, advantages_BT, mask_BT, clip_low=clip_low, clip_high=clip_high
    )
    return loss_BT.masked_fill(chosen_BT.bool(), 0.0)


# --- which tokens and sequences count -------------------------------------------------------------------------------


@torch.no_grad()
def off_policy_keep(
    logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, *, limit: float
) -> Tensor:
    """(B, T) bool: False on tokens with A < 0 in a row whose mean of log(old / now) exceeds the limit, in nats.

    The row is then one that the policy has left far behind, and pushing it further down teaches nothing.
    Source: off-policy sequence masking, DeepSeek-V3.2, arXiv:2512.02556 §3.1; the paper gives no limit.
    """
    drift_B1 = masked_sequence_mean(-bounded_log_ratio(logprobs_BT, old_logprobs_BT, mask_BT), mask_BT)
    return (advantages_BT >= 0) | (drift_B1 <= limit)


@torch.no_grad()
def sequence_keep(
    trainer_logprobs_BT: Tensor,
    generator_logprobs_BT: Tensor,
    mask_BT: Tensor,
    *,
    ratio_low: float | None = None,
    ratio_high: float | None = None,
    k3_high: float | None = None,
) -> Tensor:
    """(B,) bool: rows whose trainer and generator agree well enough to train on; None = that limit is not applied.

    ratio_low, ratio_high: bounds of the geometric mean of trainer / generator over the row's tokens, which does not
    depend on the length as a product does. k3_high: bound of the row's mean k3 estimate of KL(generator || trainer).
    Source: geometric and k3 rejection as in verl's rollout correction (docs/algo/rollout_corr_math.md §3.3.3, §3.3.5;
    typical bounds there: 0.999 to 1.001, and 0.001 to 0.01).
    """
    log_ratio_BT = bounded_log_ratio(trainer_logprobs_BT, generator_logprobs_BT, mask_BT)
    mean_B = masked_sequence_mean(log_ratio_BT, mask_BT)[:, 0]
    keep_B = torch.ones_like(mean_B, dtype=torch.bool)
    if ratio_low is not None:
        keep_B &= mean_B >= math.log(ratio_low)
    if ratio_high is not None:
        keep_B &= mean_B <= math.log(ratio_high)
    if k3_high is not None:
        generator_BT = zero_outside(generator_logprobs_BT, mask_BT)
        k3_BT = kl_estimate(generator_BT, zero_outside(trainer_logprobs_BT, mask_BT), kind="k3")
        keep_B &= masked_sequence_mean(k3_BT, mask_BT)[:, 0] <= k3_high
    return keep_B


@torch.no_grad()
def top_entropy(entropy_BT: Tensor, mask_BT: Tensor, *, share: float) -> Tensor:
    """(B, T) bool: the share of valid tokens with the highest entropy, ties with the last of them included.

    Source: arXiv:2506.01939 §5 (share 0.2: the tokens at which an answer forks); quantile as in TRL.
    """
    mask_BT = mask_BT.bool()
    values_N = entropy_BT[mask_BT].double()
    if share >= 1 or not len(values_N):
        return mask_BT
    return (entropy_BT.double() >= quantile(values_N, 1 - share)) & mask_BT


def quantile(values_N: Tensor, q: float) -> Tensor:
    """Linear interpolation between order statistics; unlike torch.quantile for any number of values."""
    ordered_N = values_N.sort().values
    index = q * (len(ordered_N) - 1)
    low = int(index)
    high = min(low + 1, len(ordered_N) - 1)
    return torch.lerp(ordered_N[low], ordered_N[high], index - low)


@torch.no_grad()
def covariance(logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T): (logprob - mean) * (A - mean), means over all valid tokens; -inf outside the mask.

    Likely tokens with a high advantage, whose reinforcement lowers the entropy most, have the largest.
    Source: arXiv:2505.22617 (token-wise centred cross-product).
    """
    mask_BT = mask_BT.bool()
    advantages_BT = advantages_BT.expand_as(logprobs_BT)
    count = mask_BT.sum().clamp(min=1)
    centred = [
        x - x.sum() / count
        for x in (zero_outside(logprobs_BT.double(), mask_BT), zero_outside(advantages_BT.double(), mask_BT))
    ]
    return (centred[0] * centred[1]).masked_fill(~mask_BT, -torch.inf)


@torch.no_grad()
def highest(covariance_BT: Tensor, *, share: float) -> Tensor:
    """(B, T) bool: the share of valid tokens with the largest covariance, at least one. Source: KL-Cov, as above."""
    count = int(covariance_BT.isfinite().sum())
    chosen_N = torch.zeros(covariance_BT.numel(), dtype=torch.bool)
    if count:
        chosen_N[covariance_BT.flatten().topk(max(int(share * count), 1)).indices] = True
    return chosen_N.view_as(covariance_BT)


@torch.no_grad()
def in_band(covariance_BT: Tensor, *, low: float, high: float, share: float, generator: torch.Generator) -> Tensor:
    """(B, T) bool: of the tokens whose covariance lies between low and high, at most this share of all valid tokens
    (at least one), drawn at random. Source: Clip-Cov, as above (1, 5, 2e-4)."""
    count = int(covariance_BT.isfinite().sum())
    candidates_N = ((covariance_BT > low) & (covariance_BT < high)).flatten().nonzero()[:, 0]
    drawn_N = candidates_N[torch.randperm(len(candidates_N), generator=generator)[: max(int(share * count), 1)]]
    chosen_N = torch.zeros(covariance_BT.numel(), dtype=torch.bool)
    chosen_N[drawn_N] = True
    return chosen_N.view_as(covariance_BT)
