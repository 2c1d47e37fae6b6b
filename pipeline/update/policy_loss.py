"""The loss of one micro-batch and the metrics that belong to it; blind to where the advantages came from.

The objective does not depend on how rows are divided into micro-batches or ranks: each loss is a sum over rows divided
by a denominator of the whole minibatch, known before the first backward pass. Axes: see pipeline/credit/__init__.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from pipeline.config.schema import Critic, Loss
from pipeline.distributed import ranks
from pipeline.update import losses, surrogates
from pipeline.update.divergence import TeacherStates, TeacherTopK
from pipeline.update.forward import Padded, Row, pad_rows, stack
from pipeline.update.losses import zero_outside

SURROGATES = {"clip": losses.clipped_surrogate, "gspo": losses.gspo_surrogate, "cispo": losses.cispo_surrogate}


class Lesson(Protocol):
    """What a teacher says about the rows of a step."""

    def states(self, indices: Sequence[int], device: torch.device) -> TeacherStates | TeacherTopK:
        """The teacher's hidden states of these rows, or its most likely tokens; without gradient."""
        ...


@dataclass(slots=True)
class Experience:
    """Everything an update needs of the rows of one step; each tensor is (its T,), on the CPU, without gradient.

    old_logprobs: the trainer's before the first update; None = on-policy, the current ones are the old ones.
    reference_logprobs: None if no KL is used. values, returns: None without a critic.
    valued: 1 on the tokens whose values are trained, 0 on the others; None trains all that are unmasked.
    kept: 1 on the tokens that the policy loss keeps, 0 on those it leaves out; None keeps all that are unmasked.
    chosen: 1 on the tokens that kl_cov or clip_cov treats apart; None for other losses.
    lesson: the teacher's side of the rows, where the loss compares whole distributions.
    stale: whether an earlier policy than the current one sampled the rows.
    """

    rows: list[Row]
    advantages: list[Tensor]
    generator_logprobs: list[Tensor]
    old_logprobs: list[Tensor] | None = None
    reference_logprobs: list[Tensor] | None = None
    values: list[Tensor] | None = None
    returns: list[Tensor] | None = None
    valued: list[Tensor] | None = None
    kept: list[Tensor] | None = None
    chosen: list[Tensor] | None = None
    lesson: Lesson | None = None
    stale: bool = False

    @property
    def num_trainable_rows(self) -> int:
        """Rows with at least one unmasked token; the denominator of the KL per sequence."""
        return sum(any(r.mask) for r in self.rows)

    def padded(self, name: str, indices: Sequence[int], device: torch.device) -> Tensor | None:
        """(B, T) of one column for these rows, zeros after each row's end; None where the column is None."""
        column = getattr(self, name)
        return None if column is None else stack([column[i] for i in indices]).to(device)


@dataclass(frozen=True, slots=True)
class Minibatch:
    """The rows of one optimizer step. micro_batches: this rank's, as row indices.

    total: the denominator of the policy loss over all ranks (`losses.denominator`); num_tokens: unmasked tokens;
    num_observing: rows with observations.
    filler: a row to run with weight 0 where a rank has no row of its own, so that all ranks run as many forwards.
    """

    micro_batches: list[list[int]]
    total: Tensor
    num_tokens: Tensor
    num_observing: int
    filler: int

    def pad(self, rows: Sequence[Row], micro_batch: Sequence[int], device: torch.device) -> tuple[Padded, list[int]]:
        """The micro-batch as tensors and the indices of its rows; an empty one becomes the masked filler row."""
        indices = list(micro_batch) or [self.filler]
        padded = pad_rows([rows[i] for i in indices], device)
        return (padded if micro_batch else replace(padded, mask_BT=torch.zeros_like(padded.mask_BT))), indices


@dataclass(frozen=True, slots=True)
class Objective:
    """What an update minimises. kl_coef: of the KL in the loss; 0 where the KL is in the reward or unused."""

    loss: Loss
    critic: Critic | None
    max_tokens: int
    kl_coef: float = 0.0
    kl_kind: str = "k3"


class Averages:
    """Sums of named metrics over the tokens of all micro-batches and ranks, read as means; maxima apart.

    Kept as tensors until they are read: fetching a number from a GPU for each metric would stall it each time.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    def add(self, name: str, values_BT: Tensor, mask_BT: Tensor) -> None:
        pair = torch.stack([values_BT.detach().double().masked_fill(~mask_BT, 0.0).sum(), mask_BT.sum().double()])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def largest(self, name: str, values_BT: Tensor, mask_BT: Tensor) -> None:
        value = values_BT.detach().double().masked_fill(~mask_BT, -math.inf).max()
        self.maxima[name] = torch.maximum(self.maxima[name], value) if name in self.maxima else value

    def once(self, name: str, value: float | Tensor) -> None:
        """A metric that is one number on every rank."""
        self.maxima[name] = torch.as_tensor(value).detach().double()

    def read(self) -> dict[str, float]:
        """By name; NaN where nothing was valid."""
        out: dict[str, float] = {}
        if self.sums:
            sums_N2 = ranks.summed(torch.stack(list(self.sums.values()))).tolist()
            out |= {n: s / c if c else math.nan for n, (s, c) in zip(self.sums, sums_N2, strict=True)}
        if self.maxima:
            device = next(iter(self.maxima.values())).device
            values = ranks.largest(torch.stack([m.to(device) for m in self.maxima.values()])).tolist()
            out |= {n: math.nan if v == -math.inf else v for n, v in zip(self.maxima, values, strict=True)}
        return out


def policy_loss(
    policy: nn.Module, batch: Experience, padded: Padded, indices: list[int], mini: Minibatch, objective: Objective,
    metrics: Averages,
) -> Tensor:  # fmt: skip
    """Scalar loss of one micro-batch of the policy, and its metrics.

    Per token: m * w * surrogate(log p - log p_old, A) + kl_coef * KL + coef * divergence from a teacher
    - entropy_coef * H, with the importance weight w of trainer over generator and m = 0 on tokens that the policy loss
    leaves out; then aggregated over the minibatch, whose denominator counts left-out tokens too. observation_coef adds
    the cross-entropy on observations, at the sampling temperature as all log-probs are; a shared critic its value loss.
    """
    loss, device, mask_BT = objective.loss, padded.device, padded.mask_BT
    states = batch.lesson.states(indices, device) if batch.lesson is not None else None
    logprobs_BT, entropy_BT, *values = policy(padded) if states is None else policy(padded, teacher=states)
    old_BT = batch.padded("old_logprobs", indices, device)
    old_BT = logprobs_BT.detach() if old_BT is None else old_BT
    generator_BT = batch.padded("generator_logprobs", indices, device)
    advantages_BT = batch.padded("advantages", indices, device)
    assert advantages_BT is not None and generator_BT is not None
    ratio_from_BT = generator_BT if loss.old_policy == "generator" else old_BT
    chosen_BT = batch.padded("chosen", indices, device)
    loss_BT = surrogate_of(loss, chosen_BT)(logprobs_BT, ratio_from_BT, advantages_BT, mask_BT)
    loss_BT = loss_BT * losses.importance_weights(
        old_BT, generator_BT, mask_BT, mode=loss.importance, level=loss.importance_level, cap=loss.importance_cap
    )
    if batch.stale and loss.importance != "none":
        measure_importance(metrics, loss, old_BT, generator_BT, mask_BT)
    kept_BT = batch.padded("kept", indices, device)
    loss_BT = leave_out(loss_BT, kept_BT, loss, logprobs_BT, generator_BT, advantages_BT, mask_BT, metrics)
    metrics.add("policy_loss", loss_BT, mask_BT)
    reference_BT = batch.padded("reference_logprobs", indices, device)
    if reference_BT is not None:
        metrics.add("kl_k1", losses.kl_estimate(logprobs_BT.detach(), reference_BT, kind="k1"), mask_BT)
        metrics.add("kl_k3", losses.kl_estimate(logprobs_BT.detach(), reference_BT, kind="k3"), mask_BT)
        if objective.kl_coef:
            kind = cast(Literal["k2", "k3", "unbiased"], objective.kl_kind)
            kl_BT = losses.kl_loss(logprobs_BT, reference_BT, mask_BT, kind=kind, old_logprobs_BT=old_BT)
            metrics.add("kl_loss", kl_BT, mask_BT)
            loss_BT = loss_BT + objective.kl_coef * kl_BT
    if states is not None:
        divergence_BT = zero_outside(values.pop(), mask_BT & states.mask_BT)
        metrics.add("teacher_divergence", divergence_BT, mask_BT & states.mask_BT)
        loss_BT = loss_BT + states.coef * divergence_BT
    if loss.entropy_coef:
        loss_BT = loss_BT - loss.entropy_coef * entropy_BT.masked_fill(~mask_BT, 0.0)
    metrics.add("entropy", entropy_BT, mask_BT)
    metrics.add("advantage_abs", advantages_BT.abs(), mask_BT)
    measure_ratio(metrics, loss, logprobs_BT.detach(), ratio_from_BT, advantages_BT, mask_BT)
    measure_mismatch(metrics, old_BT, generator_BT, mask_BT)
    out = losses.aggregate(loss_BT, mask_BT, kind=loss.aggregate, max_length=objective.max_tokens, total=mini.total)
    if loss.observation_coef:
        metrics.add("observation_loss", -logprobs_BT, padded.observed_BT)
        out = out + loss.observation_coef * losses.observation_loss(
            logprobs_BT, padded.observed_BT, total=mini.num_observing
        )
    if values:
        out = out + value_loss(values[0], batch, padded, indices, mini, objective, metrics)
    return out


def leave_out(
    loss_BT: Tensor, kept_BT: Tensor | None, loss: Loss, logprobs_BT: Tensor, generator_BT: Tensor,
    advantages_BT: Tensor, mask_BT: Tensor, metrics: Averages,
) -> Tensor:  # fmt: skip
    """The policy loss without the tokens that were not kept, and without sequences left far behind."""
    if kept_BT is not None:
        loss_BT = loss_BT * kept_BT
        metrics.add("loss_kept", kept_BT, mask_BT)
    if loss.off_policy_limit is not None:
        near_BT = surrogates.off_policy_keep(
            logprobs_BT, generator_BT, advantages_BT, mask_BT, limit=loss.off_policy_limit
        )
        loss_BT = loss_BT * near_BT
        metrics.add("off_policy_masked", 1 - near_BT.float(), mask_BT)
    return loss_BT


def surrogate_of(loss: Loss, chosen_BT: Tensor | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The surrogate of loss.kind with the settings of the block, as a function of log-probs, old log-probs, advantages
    and mask. chosen_BT: for kl_cov and clip_cov."""
    bounds: dict[str, Any] = {"clip_low": loss.clip_low, "clip_high": loss.clip_high}
    if loss.kind in SURROGATES:
        return partial(SURROGATES[loss.kind], **bounds)
    if loss.kind == "dppo":
        return partial(surrogates.dppo_surrogate, **bounds, divergence=loss.divergence)
    if loss.kind == "sapo":
        return partial(
            surrogates.sapo_surrogate, tau_positive=loss.sapo_tau_positive, tau_negative=loss.sapo_tau_negative
        )
    if loss.kind == "vespo":
        return partial(
            surrogates.vespo_surrogate, positive=(loss.vespo_k_positive, loss.vespo_lambda_positive),
            negative=(loss.vespo_k_negative, loss.vespo_lambda_negative),
        )  # fmt: skip
    if loss.kind == "reinforce":
        return lambda logprobs_BT, _, advantages_BT, mask_BT: losses.reinforce_surrogate(
            logprobs_BT, advantages_BT, mask_BT
        )
    assert chosen_BT is not None
    if loss.kind == "kl_cov":
        return partial(surrogates.kl_cov_surrogate, chosen_BT=chosen_BT, coef=loss.cov_coef)
    return partial(surrogates.clip_cov_surrogate, chosen_BT=chosen_BT, **bounds)


def value_loss(
    values_BS: Tensor, batch: Experience, padded: Padded, indices: list[int], mini: Minibatch, objective: Objective,
    metrics: Averages,
) -> Tensor:  # fmt: skip
    """Scalar loss of one micro-batch of a critic; weighted by critic.coef where it shares the policy's backbone."""
    assert objective.critic is not None
    old_BT = batch.padded("values", indices, padded.device)
    returns_BT = batch.padded("returns", indices, padded.device)
    assert old_BT is not None and returns_BT is not None
    clip = objective.critic.clip or None
    valued_BT = batch.padded("valued", indices, padded.device)
    mask_BT = padded.mask_BT if valued_BT is None else padded.mask_BT & valued_BT.bool()
    loss_BT = losses.value_loss(values_BS[:, :-1], old_BT, returns_BT, mask_BT, clip=clip)
    metrics.add("value_loss", loss_BT, mask_BT)
    out = losses.aggregate(loss_BT, padded.mask_BT, kind="token_mean", total=mini.num_tokens)
    return out * objective.critic.coef if objective.critic.shared else out


def ptx_loss(policy: Any, padded: Padded, mini: Minibatch, *, coef: float, metrics: Averages) -> Tensor:
    """Negative log-likelihood of demonstrations, at temperature 1. Source: PPO-ptx, arXiv:2203.02155 eq. 2."""
    loss_BT = -policy(padded, temperature=1.0)[0]
    metrics.add("ptx_loss", loss_BT, padded.mask_BT)
    return coef * losses.aggregate(loss_BT, padded.mask_BT, kind="token_mean", total=mini.num_tokens)


def measure_ratio(
    metrics: Averages, loss: Loss, logprobs_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor
) -> None:
    """Largest probability ratio, and the share of tokens whose gradient each clip bound removed."""
    metrics.largest("ratio_max", (logprobs_BT - old_BT).masked_fill(~mask_BT, 0.0).exp(), mask_BT)
    rows = (logprobs_BT, old_BT, advantages_BT, mask_BT)
    bounds: dict[str, Any] = {"clip_low": loss.clip_low, "clip_high": loss.clip_high}
    if loss.kind == "dppo":
        low_BT, high_BT = surrogates.outside_trust_region(*rows, **bounds, divergence=loss.divergence)
    elif loss.kind in ("clip", "gspo", "cispo", "clip_cov"):
        level: losses.Level = "sequence" if loss.kind == "gspo" else "token"
        low_BT, high_BT = losses.clipped_tokens(*rows, **bounds, level=level)
    else:  # nothing is clipped
        return
    metrics.add("clipped_low", low_BT.float(), mask_BT)
    metrics.add("clipped_high", high_BT.float(), mask_BT)


def measure_importance(
    metrics: Averages, loss: Loss, old_BT: Tensor, generator_BT: Tensor, mask_BT: Tensor
) -> None:  # fmt: skip
    """Share of tokens whose importance weight exceeds the cap, and is truncated or masked."""
    weights_BT = losses.importance_weights(
        old_BT, generator_BT, mask_BT, mode="truncate", level=loss.importance_level, cap=math.inf
    )
    metrics.add("importance_over_cap", (weights_BT > loss.importance_cap).float(), mask_BT)


def measure_mismatch(metrics: Averages, old_BT: Tensor, generator_BT: Tensor, mask_BT: Tensor) -> None:
    """Distance of the generator's log-probs from the trainer's, over the tokens that the policy sampled."""
    gap_BT = (old_BT - generator_BT).abs()
    metrics.add("mismatch_mean_abs", gap_BT, mask_BT)
    metrics.add("mismatch_k1", losses.kl_estimate(generator_BT, old_BT, kind="k1"), mask_BT)
    metrics.add("mismatch_k3", losses.kl_estimate(generator_BT, old_BT, kind="k3"), mask_BT)
    metrics.largest("mismatch_max", gap_BT, mask_BT)


__all__ = [
    "Averages",
    "Experience",
    "Minibatch",
    "Objective",
    "measure_mismatch",
    "policy_loss",
    "ptx_loss",
    "surrogate_of",
    "value_loss",
]
