"""Scores -> advantages: by group, leave-one-out, batch, GAE, reward to go or sampled step values.

Axes: see pipeline/credit/__init__.py. A mask may have holes (tool or environment tokens); every recursion here skips a
hole as if it were not there. Every rank holds all rows of a step, so no sum crosses ranks. Sums are taken in float64.
"""

from typing import Literal

import torch
from torch import Tensor

from pipeline.credit.segments import spread_from_start

Baseline = Literal["group", "leave_one_out", "global_baseline"]

STD_EPS = 1e-4  # added to a reward std, as GRPO's reference code does
VARIANCE_EPS = 1e-8  # added to a variance under a root, as in lm-human-preferences


@torch.no_grad()
def group_advantages(rewards_PG: Tensor, *, scale: bool) -> Tensor:
    """Reward minus its group's mean, over the group's std if scale.

    rewards_PG: (P, G) float; NaN = not scorable: it gets 0 and counts in neither mean nor std.
    Returns (P, G), zero mean per row over the scorable rewards; a row of equal rewards is all zeros: no signal.
    Raises ValueError if G < 2 or a reward is infinite.
    Source: GRPO, arXiv:2402.03300 §4.1 (std with ddof 1, eps 1e-4); scale=False is Dr. GRPO, arXiv:2503.20783.
    """
    centred_PG, scorable_PG = _centre_groups(rewards_PG)
    if scale:
        count_P1 = scorable_PG.sum(1, keepdim=True)
        variance_P1 = centred_PG.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)
        centred_PG = centred_PG / (variance_P1.sqrt() + STD_EPS)
    return centred_PG.to(_float_dtype(rewards_PG))


@torch.no_grad()
def leave_one_out(rewards_PG: Tensor) -> Tensor:
    """Reward minus the mean of the other rewards in its group: (r - mean) * n / (n - 1).

    rewards_PG: (P, G); NaN = not scorable: it gets 0 and is in no baseline. A reward alone in its group gets 0.
    Raises ValueError if G < 2 or a reward is infinite.
    Source: RLOO, arXiv:2402.14740 §3.2.
    """
    centred_PG, scorable_PG = _centre_groups(rewards_PG)
    count_P1 = scorable_PG.sum(1, keepdim=True)
    return (centred_PG * count_P1 / (count_P1 - 1).clamp(min=1)).to(_float_dtype(rewards_PG))


@torch.no_grad()
def global_baseline(rewards_PG: Tensor, *, subtract_group_mean: bool = False) -> Tensor:
    """Reward minus the mean of the whole batch, over the batch's std; no group is needed (G may be 1).

    rewards_PG: (P, G); NaN = not scorable: it gets 0 and does not count. A batch of equal rewards is all zeros.
    subtract_group_mean: first centre each group, then take mean and std over the batch ("REINFORCE++-baseline").
    Raises ValueError if a reward is infinite, or if G < 2 with subtract_group_mean.
    Source: REINFORCE++, arXiv:2501.03262 §3.
    """
    if subtract_group_mean:
        x_PG, scorable_PG = _centre_groups(rewards_PG)
    else:
        x_PG, scorable_PG = _split_unscorable(rewards_PG)
    mean, variance = masked_moments(x_PG, scorable_PG)
    # equal rewards leave rounding, not signal: below it the deviation is called zero
    deviation_PG = torch.where(scorable_PG, x_PG - mean, 0.0)
    deviation_PG = torch.where(deviation_PG.abs() <= 1e-12 * (1 + mean.abs()), 0.0, deviation_PG)
    return (deviation_PG / (variance.sqrt() + STD_EPS)).to(_float_dtype(rewards_PG))


def groups_with_signal(rewards_PG: Tensor) -> Tensor:
    """(P,) bool: True where a group has two different scorable rewards, so that its advantages are not all zero.

    Dynamic sampling keeps these groups and samples others for the rest (DAPO, arXiv:2503.14476 §3.2).
    """
    scorable_PG = ~rewards_PG.isnan()
    highest_P = rewards_PG.masked_fill(~scorable_PG, -torch.inf).amax(1)
    lowest_P = rewards_PG.masked_fill(~scorable_PG, torch.inf).amin(1)
    return highest_P > lowest_P


@torch.no_grad()
def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    *,
    gamma: float,
    lam: float,
    last_values_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and their value targets.

    rewards_BT: reward for token t; values_BT: V(s_t), read at the position BEFORE token t; both (B, T).
    mask_BT: (B, T) bool. Tokens outside are no steps: their reward and value are not read, not even when NaN, and
    they are not discounted for.
    last_values_B: (B,) value after the last valid token, for rows truncated by a length limit; None or 0 = a real end.
    Returns (advantages_BT, returns_BT), 0 outside the mask; returns are advantages + values, so whiten later.
    Source: arXiv:1506.02438 eq. 16.
    """
    mask_BT = mask_BT.bool()
    dtype = _float_dtype(values_BT)
    rewards_BT = rewards_BT.to(dtype).masked_fill(~mask_BT, 0.0)
    values_BT = values_BT.to(dtype).masked_fill(~mask_BT, 0.0)
    after_B = torch.zeros_like(values_BT[:, 0]) if last_values_B is None else last_values_B.to(values_BT)
    running_B = torch.zeros_like(after_B)
    advantages_BT = torch.zeros_like(values_BT)
    for t in reversed(range(mask_BT.shape[1])):
        step_B = mask_BT[:, t]
        error_B = rewards_BT[:, t] + gamma * after_B - values_BT[:, t]
        running_B = torch.where(step_B, error_B + gamma * lam * running_B, running_B)
        after_B = torch.where(step_B, values_BT[:, t], after_B)
        advantages_BT[:, t] = torch.where(step_B, running_B, 0.0)
    return advantages_BT, advantages_BT + values_BT


def turn_gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    *,
    gamma: float,
    lam: float,
    turns_BT: Tensor | None = None,
    last_values_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """GAE with a whole turn as one step: discounts count turns, and a turn's tokens share its advantage.

    A turn's reward is the sum over its tokens, its value V at its first token.
    turns_BT: (B, T) int, the turn of each valid token, rising from 0 in each row; None = `turns_of(mask_BT)`.
    Returns (advantages_BT, returns_BT) as `gae` does; every token of a turn holds that turn's pair.
    """
    mask_BT = mask_BT.bool()
    turns_BT = turns_of(mask_BT) if turns_BT is None else turns_BT
    index_BT = turns_BT.masked_fill(~mask_BT, 0)
    n_turns = int(index_BT.max()) + 1 if index_BT.numel() else 0
    first_BT = mask_BT & (index_BT != _previous_valid(index_BT, mask_BT))

    def per_turn(x_BT: Tensor, counted_BT: Tensor) -> Tensor:
        dtype = _float_dtype(x_BT)
        x_BT = x_BT.to(dtype).masked_fill(~counted_BT, 0.0)
        return x_BT.new_zeros(x_BT.shape[0], n_turns).scatter_add(1, index_BT, x_BT)

    taken_BK = per_turn(first_BT.float(), first_BT) > 0
    advantages_BK, returns_BK = gae(
        per_turn(rewards_BT, mask_BT),
        per_turn(values_BT, first_BT),
        taken_BK,
        gamma=gamma,
        lam=lam,
        last_values_B=last_values_B,
    )
    spread = (x_BK.gather(1, index_BT).masked_fill(~mask_BT, 0.0) for x_BK in (advantages_BK, returns_BK))
    return next(spread), next(spread)


def turns_of(mask_BT: Tensor) -> Tensor:
    """(B, T) int: the number of the unbroken run of valid tokens that a token lies in; -1 outside the mask."""
    mask_BT = mask_BT.bool()
    before_BT = torch.nn.functional.pad(mask_BT, (1, 0))[:, :-1]
    return ((mask_BT & ~before_BT).cumsum(1) - 1).masked_fill(~mask_BT, -1)


@torch.no_grad()
def discounted_returns(
    rewards_BT: Tensor, mask_BT: Tensor, *, gamma: float, last_values_B: Tensor | None = None
) -> Tensor:
    """Discounted sum of the rewards from each valid token on; 0 outside the mask. No critic needed."""
    no_values_BT = torch.zeros_like(rewards_BT, dtype=_float_dtype(rewards_BT))
    # with V = 0 a λ=1 advantage IS the return; the bootstrap enters as a reward after the end
    returns_BT, _ = gae(rewards_BT, no_values_BT, mask_BT, gamma=gamma, lam=1.0, last_values_B=last_values_B)
    return returns_BT


@torch.no_grad()
def reward_to_go_advantages(
    rewards_BT: Tensor, mask_BT: Tensor, *, group: int, baseline: Baseline, scale: bool, totals_B: Tensor | None = None,
    segments_BT: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The reward still to come at each token, minus its group's baseline; for rewards given along the way.

    A token gets no credit for rewards before it. rewards_BT: (B, T), prompt-major with `group` rows a prompt.
    baseline: the mean total of the group; of its other rows (leave_one_out); of the batch (global_baseline). A row
    alone gets 0 from leave_one_out.
    totals_B: (B,) each row's total for the baseline, NaN = it does not count; None = the sum of its rewards, and a row
    with no valid token does not count. Differs from None where a masked row keeps its place in the group's mean.
    segments_BT: (B, T) int, the segment of each token, -1 outside the mask: a segment is one step, so all its tokens
    get the reward from its first token on; None = each token is a step.
    scale: over the std of these differences over the group's (the batch's) valid tokens; global_baseline always does.
    Returns (B, T), 0 outside the mask; with unscaled rewards on last tokens only, each baseline's sequence form.
    Source: policy gradient with reward to go (Sutton et al. 1999, theorem 1); any constant baseline leaves it unbiased.
    """
    mask_BT = mask_BT.bool()
    togo_BT = discounted_returns(rewards_BT.double(), mask_BT, gamma=1.0)
    togo_BT = togo_BT if segments_BT is None else spread_from_start(togo_BT, segments_BT)
    sums_B = rewards_BT.double().masked_fill(~mask_BT, 0.0).sum(1)
    used_B = mask_BT.any(1) if totals_B is None else ~totals_B.isnan()
    totals_B = sums_B if totals_B is None else totals_B.double().nan_to_num(nan=0.0)
    size = len(togo_BT) if baseline == "global_baseline" else group
    totals_PG = totals_B.view(-1, size)
    count_P1 = used_B.view(-1, size).sum(1, keepdim=True)
    sum_P1 = totals_PG.sum(1, keepdim=True)
    if baseline == "leave_one_out":
        others_PG = (sum_P1 - totals_PG) / (count_P1 - 1).clamp(min=1)
        centre_PG = torch.where(count_P1 > 1, others_PG, totals_PG)
    else:
        centre_PG = (sum_P1 / count_P1.clamp(min=1)).expand_as(totals_PG)
    centred_BT = (togo_BT - centre_PG.reshape(-1, 1)).masked_fill(~mask_BT, 0.0)
    if (scale and baseline == "group") or baseline == "global_baseline":
        tokens_P1 = mask_BT.view(-1, size, mask_BT.shape[1]).sum((1, 2))[:, None]
        squares_P1 = centred_BT.square().sum(1).view(-1, size).sum(1, keepdim=True)
        std_P1 = (squares_P1 / tokens_P1.clamp(min=1)).sqrt()
        centred_BT = centred_BT / (std_P1 + STD_EPS).expand(-1, size).reshape(-1, 1)
    return centred_BT.to(_float_dtype(rewards_BT))


@torch.no_grad()
def monte_carlo_values(continuation_scores_BKM: Tensor) -> Tensor:
    """(B, K) mean score of the M continuations sampled from the start of each step; NaN scores do not count.

    All M NaN gives NaN: unknown (`step_values_to_advantages` then bridges the step).
    """
    return continuation_scores_BKM.nanmean(2)


@torch.no_grad()
def step_values_to_advantages(
    step_values_BK: Tensor, scores_B: Tensor, steps_BT: Tensor, mask_BT: Tensor, *, gamma: float = 1.0
) -> Tensor:
    """How much each step raised the expected score: gamma * V(next step) - V(step), given to all its tokens.

    step_values_BK: V at the start of step k, from sampled continuations; NaN = unknown, or beyond a row's end.
    scores_B: the finished completion's own score, which closes its last step undiscounted.
    steps_BT: (B, T) int, the step each valid token belongs to.
    Returns (B, T), 0 outside the mask. An unknown value joins its step with the one before: both get the
    difference between the known values around them. If no value is known on one side the advantage is 0.
    Source: VinePPO, arXiv:2410.01679 §4 (gamma 1 there).
    """
    mask_BT = mask_BT.bool()
    steps_BT = steps_BT.masked_fill(~mask_BT, 0)
    dtype = _float_dtype(step_values_BK)
    values_BK = step_values_BK.to(dtype)
    last_step_B = steps_BT.amax(1)
    after_B = scores_B.to(dtype)
    upper_BK = torch.empty_like(values_BK)
    for k in reversed(range(values_BK.shape[1])):
        upper_BK[:, k] = after_B
        known_B = ~values_BK[:, k].isnan() & (k <= last_step_B)
        after_B = torch.where(known_B, gamma * values_BK[:, k], after_B)
    before_B = torch.full_like(after_B, torch.nan)
    lower_BK = torch.empty_like(values_BK)
    for k in range(values_BK.shape[1]):
        before_B = torch.where(values_BK[:, k].isnan(), before_B, values_BK[:, k])
        lower_BK[:, k] = before_B
    advantages_BK = (upper_BK - lower_BK).nan_to_num(nan=0.0)
    return advantages_BK.gather(1, steps_BT).masked_fill(~mask_BT, 0.0)


@torch.no_grad()
def whiten(x_BT: Tensor, mask_BT: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance over the valid tokens; mean to 0 if shift_mean, else the mean is kept.

    Returns (B, T), 0 outside the mask. An all-masked batch gives zeros.
    Source: lm-human-preferences `utils/core.py` (population variance, eps 1e-8 under the root).
    """
    mask_BT = mask_BT.bool()
    mean, variance = masked_moments(x_BT, mask_BT)
    whitened_BT = (x_BT.double() - mean) * torch.rsqrt(variance + VARIANCE_EPS)
    if not shift_mean:
        whitened_BT = whitened_BT + mean
    return whitened_BT.masked_fill(~mask_BT, 0.0).to(_float_dtype(x_BT))


@torch.no_grad()
def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over valid tokens; NaN if the returns do not vary."""
    _, residual = masked_moments(returns_BT.double() - values_BT.double(), mask_BT)
    _, total = masked_moments(returns_BT, mask_BT)
    return float(1 - residual / total) if float(total) > 0 else float("nan")


def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance over the mask, as float64 scalars; both 0 when nothing is valid."""
    mask = mask.bool()
    x = x.double().masked_fill(~mask, 0.0)
    total, count = x.sum(), mask.sum().double()
    mean = total / count.clamp(min=1)
    # second pass over deviations: a difference of squares would cancel for rewards far from 0
    squares = (x - mean).masked_fill(~mask, 0.0).square().sum()
    return mean, squares / count.clamp(min=1)


def masked_mean(x: Tensor, mask: Tensor) -> float:
    """Mean over the mask, for logs; NaN when nothing is valid, so that a curve shows a gap instead of a zero."""
    mask = mask.bool()
    return float(x.detach().double().masked_fill(~mask, 0.0).sum() / mask.sum().double())


def _centre_groups(rewards_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards minus their group's mean in float64 with 0 where not scorable, and where they are scorable."""
    if rewards_PG.ndim != 2 or rewards_PG.shape[1] < 2:
        raise ValueError(
            f"rewards of shape {tuple(rewards_PG.shape)}: a group baseline needs (prompts, samples) with at least "
            "2 samples per prompt; raise the group size, or use a global baseline"
        )
    rewards_PG, scorable_PG = _split_unscorable(rewards_PG)
    mean_P1 = rewards_PG.sum(1, keepdim=True) / scorable_PG.sum(1, keepdim=True).clamp(min=1)
    centred_PG = (rewards_PG - mean_P1).masked_fill(~scorable_PG, 0.0)
    # a mean of equal numbers may differ from them in the last bit, and a tiny std would blow that up
    highest_P1 = rewards_PG.masked_fill(~scorable_PG, -torch.inf).amax(1, keepdim=True)
    lowest_P1 = rewards_PG.masked_fill(~scorable_PG, torch.inf).amin(1, keepdim=True)
    return centred_PG.masked_fill(highest_P1 <= lowest_P1, 0.0), scorable_PG


def _split_unscorable(rewards_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards in float64 with 0 for NaN, and where they were not NaN."""
    if bool(rewards_PG.isinf().any()):
        raise ValueError("an infinite reward; a verifier must return a finite score, or none (NaN) if it broke")
    scorable_PG = ~rewards_PG.isnan()
    return rewards_PG.double().masked_fill(~scorable_PG, 0.0), scorable_PG


def _previous_valid(index_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The index at the nearest valid position before each position; -1 where there is none."""
    latest_BT = index_BT.masked_fill(~mask_BT, -1).cummax(1).values  # an index never falls along a row
    return torch.nn.functional.pad(latest_BT, (1, 0), value=-1)[:, :-1]


def _float_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the results: that of x, but at least float32 (bfloat16 keeps 8 bits of a return)."""
    return torch.promote_types(x.dtype, torch.float32)
