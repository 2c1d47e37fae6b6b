"""The update's arithmetic: surrogates, KL, value loss, importance weights; each per token, with the mean kept apart.

Axes: see pipeline/credit/__init__.py. Values outside a mask are never read (they may be NaN) and give 0. Everything
returned by a `*_surrogate` or `*_loss` is to be MINIMISED.

The mean is two numbers, so that it cannot depend on how a batch is divided. For the whole optimizer step, over all
micro-batches and ranks: `total = Σ denominator(mask, kind)`, known before the first backward; then each micro-batch
backpropagates `loss_sum(loss, mask, kind) / total`. DDP averages gradients over ranks: multiply by the world size.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant_length"]
KLKind = Literal["k1", "k2", "k3"]
KLLossKind = Literal["k2", "k3", "unbiased"]
CorrectionMode = Literal["none", "truncate", "mask"]
Level = Literal["token", "sequence"]

# exp(20) is 4.9e8: far past any ratio that carries information, and float32 stays finite
MAX_LOG_RATIO = 20.0


def clipped_surrogate(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    ratio_max: float | None = None,
) -> Tensor:
    """-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) per token; to be minimised.

    advantages_BT: (B, T), or (B, 1) for one advantage per sequence. Only logprobs_BT gets gradient.
    clip_high > clip_low is DAPO's clip-higher. ratio_max bounds the ratio where A < 0, which the minimum leaves
    unbounded (dual clip, arXiv:1912.09729).
    Returns (B, T), 0 outside the mask.
    Source: PPO, arXiv:1707.06347 eq. 7; DAPO, arXiv:2503.14476 §3.1.
    """
    ratio_BT = bounded_log_ratio(logprobs_BT, old_logprobs_BT.detach(), mask_BT).exp()
    return _pessimistic(ratio_BT, advantages_BT, mask_BT, clip_low, clip_high, ratio_max)


def gspo_surrogate(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """The clipped surrogate with one ratio per sequence: exp of the mean log-ratio over its valid tokens.

    Same value at each valid token of a row (if A is); made for the aggregation `sequence_mean`. Clip bounds are
    about a hundred times smaller than PPO's (paper: 3e-4 and 4e-4), since a mean moves less than a token.
    Returns (B, T), 0 outside the mask.
    Source: arXiv:2507.18071 eq. 5 and 7.
    """
    mask_BT = mask_BT.bool()
    log_ratio_BT = bounded_log_ratio(logprobs_BT, old_logprobs_BT.detach(), mask_BT)
    ratio_BT = masked_sequence_mean(log_ratio_BT, mask_BT).expand_as(log_ratio_BT).exp()
    return _pessimistic(ratio_BT, advantages_BT, mask_BT, clip_low, clip_high, None)


def cispo_surrogate(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """-clip(ratio, 1 - clip_low, 1 + clip_high) * A * logprob, no gradient through the ratio: no token is dropped.

    clip_low >= 1 leaves the lower side open, as the paper does. TRL's `epsilon_high` is the bound itself,
    1 + clip_high here.
    Returns (B, T), 0 outside the mask.
    Source: CISPO, MiniMax-M1, arXiv:2506.13585 §3.1.
    """
    ratio_BT = (
        bounded_log_ratio(logprobs_BT.detach(), old_logprobs_BT, mask_BT).exp().clamp(1 - clip_low, 1 + clip_high)
    )
    return reinforce_surrogate(logprobs_BT, ratio_BT * advantages_BT, mask_BT)


def reinforce_surrogate(logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """-A * logprob per token: the plain policy gradient, right only while the sampling policy is the current one."""
    return -zero_outside(advantages_BT.detach(), mask_BT) * zero_outside(logprobs_BT, mask_BT)


def clipped_tokens(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    level: Level = "token",
) -> tuple[Tensor, Tensor]:
    """Two (B, T) bool: tokens whose gradient the lower bound removed (A < 0), and those the upper did (A > 0).

    level: sequence for `gspo_surrogate`, whose rows are clipped as a whole by their mean log-ratio.
    """
    check_choice(level, Level, "ratio level")
    log_ratio_BT = bounded_log_ratio(logprobs_BT.detach(), old_logprobs_BT, mask_BT)
    ratio_BT = (masked_sequence_mean(log_ratio_BT, mask_BT) if level == "sequence" else log_ratio_BT).exp()
    low_BT = (ratio_BT < 1 - clip_low) & (advantages_BT < 0) & mask_BT.bool()
    high_BT = (ratio_BT > 1 + clip_high) & (advantages_BT > 0) & mask_BT.bool()
    return low_BT, high_BT


def loss_sum(loss_BT: Tensor, mask_BT: Tensor, *, kind: Aggregation, max_length: int | None = None) -> Tensor:
    """The numerator of a mean over sequences or tokens; a scalar that adds up over any split into rows.

    token_mean: the sum over tokens (long sequences weigh more: DAPO, arXiv:2503.14476 §3.3).
    sequence_mean: each row's mean, summed (GRPO, arXiv:2402.03300).
    sequence_sum: the sum over tokens, divided by rows only (LUSPO, arXiv:2602.05261: with a sequence ratio each row
    weighs its length, which undoes the bias of sequence_mean against long answers).
    constant_length: the sum over tokens, over max_length (Dr. GRPO, arXiv:2503.20783): the longest length allowed,
    not the longest in the batch, else short wrong answers are punished more.
    Raises ValueError for constant_length without a max_length.
    """
    mask_BT = mask_BT.bool()
    loss_BT = zero_outside(loss_BT, mask_BT)
    check_choice(kind, Aggregation, "aggregation")
    if kind == "sequence_mean":
        return (loss_BT.sum(1) / mask_BT.sum(1).clamp(min=1)).sum()
    if kind in ("token_mean", "sequence_sum"):
        return loss_BT.sum()
    if max_length is None or max_length < 1:
        raise ValueError(f"aggregation constant_length with max_length {max_length}: give the completion limit")
    return loss_BT.sum() / max_length


def denominator(mask_BT: Tensor, *, kind: Aggregation) -> Tensor:
    """The divisor of `loss_sum`, to be summed over all micro-batches and ranks; a float64 scalar.

    Valid tokens for token_mean, rows with any for the others: a fully masked row is no sequence.
    """
    check_choice(kind, Aggregation, "aggregation")
    counted = mask_BT.bool() if kind == "token_mean" else mask_BT.bool().any(1)
    return counted.sum().double()


def aggregate(
    loss_BT: Tensor,
    mask_BT: Tensor,
    *,
    kind: Aggregation,
    max_length: int | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    """`loss_sum` over `total`, the denominator of the whole step; None = this batch is the whole step.

    0 (with a graph, so that backward runs) if nothing is valid.
    """
    total = denominator(mask_BT, kind=kind) if total is None else total
    return loss_sum(loss_BT, mask_BT, kind=kind, max_length=max_length) / max(float(total), 1.0)


def observation_loss(logprobs_BT: Tensor, observed_BT: Tensor, *, total: Tensor | float) -> Tensor:
    """Cross-entropy on what tools or the environment answered: each row's mean over its observed tokens, summed and
    divided by `total`, the rows of the whole step that have any.

    Source: ECHO, arXiv:2605.24517, L = L_GRPO(actions) + coef * L_env(observations), "length-normalized". Rows
    without observations are taken not to count in the mean, which the paper leaves open; its exclusion of the harness's
    own warnings has no counterpart here: all that stands between two turns counts, the template's markup included.
    """
    loss_BT = zero_outside(-logprobs_BT, observed_BT)
    return (loss_BT.sum(1) / observed_BT.sum(1).clamp(min=1)).sum() / max(float(total), 1.0)


def kl_estimate(logprobs_BT: Tensor, reference_logprobs_BT: Tensor, *, kind: KLKind) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens the policy sampled; (B, T), no mask, no mean.

    k1 = log p - log q: unbiased, can be negative; the one for a reward penalty.
    k2 = k1² / 2: biased, but as a loss its gradient is that of the reverse KL.
    k3 = q/p - 1 - log(q/p): unbiased and never negative; as a loss its gradient is biased (see `kl_loss`).
    Source: J. Schulman, "Approximating KL divergence" (2020).
    """
    check_choice(kind, KLKind, "KL estimator")
    difference_BT = as_float(logprobs_BT) - as_float(reference_logprobs_BT)
    if kind == "k1":
        return difference_BT
    if kind == "k2":
        return difference_BT.square() / 2
    log_ratio_BT = (-difference_BT).clamp(max=MAX_LOG_RATIO)
    # expm1: exp(x) - 1 - x loses every digit of the x²/2 that matters when x is small
    return (torch.expm1(log_ratio_BT) - log_ratio_BT).clamp(min=0.0)


def kl_loss(
    logprobs_BT: Tensor,
    reference_logprobs_BT: Tensor,
    mask_BT: Tensor,
    *,
    kind: KLLossKind,
    old_logprobs_BT: Tensor | None = None,
) -> Tensor:
    """A KL(policy || reference) penalty to add to the loss, per token; 0 outside the mask.

    unbiased: (p/p_old) * k3 with gradient through the ratio: the reverse KL's own gradient in expectation, off-policy
    too (DeepSeek-V3.2, arXiv:2512.02556 §3.1); old_logprobs_BT None = on-policy, value k3 all the same.
    k2: the same gradient in expectation, on-policy only.
    k3: what GRPO does; on-policy its gradient is that of the forward KL(reference || policy), not of this one.
    k1 is refused: its gradient as a loss is zero in expectation (arXiv:2512.21852).
    """
    check_choice(kind, KLLossKind, "KL loss", hint="; k1 has no gradient in expectation, use it as a reward penalty")
    mask_BT = mask_BT.bool()
    logprobs_BT, reference_BT = (
        zero_outside(logprobs_BT, mask_BT),
        zero_outside(reference_logprobs_BT.detach(), mask_BT),
    )
    if kind == "k2":
        return kl_estimate(logprobs_BT, reference_BT, kind="k2")
    penalty_BT = kl_estimate(logprobs_BT, reference_BT, kind="k3")
    if kind == "unbiased":
        old_BT = logprobs_BT if old_logprobs_BT is None else old_logprobs_BT
        penalty_BT = penalty_BT * bounded_log_ratio(logprobs_BT, old_BT.detach(), mask_BT).exp()
    return penalty_BT


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, clip: float | None
) -> Tensor:
    """Half the squared error per token; the larger of it and that of the value held within ±clip of the old one.

    clip None = plain half squared error. Returns (B, T), 0 outside the mask.
    Source: openai/baselines ppo2, as in "The 37 implementation details of PPO" no. 9.
    """
    mask_BT = mask_BT.bool()
    values_BT, returns_BT = zero_outside(values_BT, mask_BT), zero_outside(returns_BT.detach(), mask_BT)
    error_BT = (values_BT - returns_BT).square()
    if clip is not None:
        old_BT = zero_outside(old_values_BT.detach(), mask_BT)
        held_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
        error_BT = torch.maximum(error_BT, (held_BT - returns_BT).square())
    return error_BT / 2


@torch.no_grad()
def importance_weights(
    trainer_logprobs_BT: Tensor,
    generator_logprobs_BT: Tensor,
    mask_BT: Tensor,
    *,
    mode: CorrectionMode,
    level: Level = "token",
    cap: float = 2.0,
    floor: float = 0.0,
) -> Tensor:
    """Factors for a per-token loss, since the generator samples from not quite the trainer's policy.

    trainer_logprobs_BT: the OLD policy's, by the trainer's forward. The ratio trainer/generator is per token, or the
    product over the row for level sequence.
    truncate: the ratio, held within [floor, cap] (TIS). mask: the ratio, 0 where it lies outside (MIS). none: 1.
    Returns (B, T) without gradient, 0 outside the mask.
    Source: TIS, fengyao.notion.site/off-policy-rl (2025); MIS as in TRL's `sequence_mask`.
    """
    check_choice(mode, CorrectionMode, "importance correction")
    check_choice(level, Level, "importance level")
    mask_BT = mask_BT.bool()
    log_ratio_BT = bounded_log_ratio(trainer_logprobs_BT, generator_logprobs_BT, mask_BT)
    if mode == "none":
        return mask_BT.to(log_ratio_BT.dtype)
    if level == "sequence":
        log_ratio_BT = log_ratio_BT.sum(1, keepdim=True).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).expand_as(log_ratio_BT)
    ratio_BT = log_ratio_BT.exp()
    if mode == "truncate":
        ratio_BT = ratio_BT.clamp(floor, cap)
    else:
        ratio_BT = torch.where((ratio_BT >= floor) & (ratio_BT <= cap), ratio_BT, 0.0)
    return zero_outside(ratio_BT, mask_BT)


def _pessimistic(
    ratio_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    clip_low: float,
    clip_high: float,
    ratio_max: float | None,
) -> Tensor:
    # a sequence ratio gets gradient from all its tokens, so one NaN beside the mask would reach every other
    advantages_BT = zero_outside(advantages_BT.detach(), mask_BT)
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high) * advantages_BT
    if ratio_max is not None:
        ratio_BT = ratio_BT.clamp(max=ratio_max)
    return zero_outside(-torch.minimum(ratio_BT * advantages_BT, clipped_BT), mask_BT)


def bounded_log_ratio(logprobs_BT: Tensor, other_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log p - log q in at least float32, bounded; 0 outside the mask, before any exp can overflow there."""
    mask_BT = mask_BT.bool()
    return (zero_outside(logprobs_BT, mask_BT) - zero_outside(other_BT, mask_BT)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def masked_sequence_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, 1) mean over valid tokens of what is 0 elsewhere; 0 for a fully masked row."""
    return x_BT.sum(1, keepdim=True) / mask_BT.bool().sum(1, keepdim=True).clamp(min=1)


def zero_outside(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """x in at least float32, 0 outside the mask; unlike x * mask this keeps NaN out of value and gradient."""
    return as_float(x_BT).masked_fill(~mask_BT.bool(), 0.0)


def as_float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_choice(value: str, allowed: object, what: str, hint: str = "") -> None:
    """Raise ValueError unless value is one of the Literal's."""
    if value not in get_args(allowed):
        raise ValueError(f"no {what} {value!r}; have: {', '.join(get_args(allowed))}{hint}")
