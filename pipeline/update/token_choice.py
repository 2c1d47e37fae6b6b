"""Which tokens and sequences of a step the policy loss keeps, chosen once per step from the policy before its updates.

A choice by rank (the highest entropies, the largest covariances) depends on all tokens it ranks. Made per micro-batch
it would change with how the step is divided; made here, over all rows, it does not. In a step of one update it equals
the choice of implementations that rank with the current policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.schema import Loss
from pipeline.seeds import derive
from pipeline.update import surrogates
from pipeline.update.forward import stack
from pipeline.update.policy_loss import Experience


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """Of a stage whose loss leaves tokens out or treats some apart. seed_key: of clip_cov's random choice."""

    loss: Loss
    seed_key: tuple[int | str, ...]

    def choose(self, batch: Experience, entropies: Sequence[Tensor] | None, step: int) -> None:
        """Fill batch.kept and batch.chosen as the loss asks.

        entropies: per row, (its T,) of the policy before the update; only top_entropy reads them.
        """
        loss, mask_BT = self.loss, stack([r.mask for r in batch.rows]).bool()
        generator_BT = stack(batch.generator_logprobs)
        before_BT = stack(batch.old_logprobs) if batch.old_logprobs is not None else generator_BT
        kept_BT = mask_BT.clone()
        if loss.top_entropy < 1:
            assert entropies is not None
            kept_BT &= surrogates.top_entropy(stack(entropies), mask_BT, share=loss.top_entropy)
        if loss.rejects:
            keep_B = surrogates.sequence_keep(
                before_BT, generator_BT, mask_BT, ratio_low=loss.reject_ratio_low, ratio_high=loss.reject_ratio_high,
                k3_high=loss.reject_k3,
            )  # fmt: skip
            kept_BT &= keep_B[:, None]
        if loss.rejects or loss.top_entropy < 1:
            batch.kept = by_row(kept_BT, batch)
        if loss.kind in ("kl_cov", "clip_cov"):
            covariance_BT = surrogates.covariance(before_BT, stack(batch.advantages), mask_BT)
            if loss.kind == "kl_cov":
                chosen_BT = surrogates.highest(covariance_BT, share=loss.cov_share)
            else:
                generator = torch.Generator().manual_seed(derive(*self.seed_key, "tokens", step))
                chosen_BT = surrogates.in_band(
                    covariance_BT, low=loss.cov_low, high=loss.cov_high, share=loss.cov_share, generator=generator
                )
            batch.chosen = by_row(chosen_BT, batch)


def by_row(values_BT: Tensor, batch: Experience) -> list[Tensor]:
    return [values_T[: len(row.ids)].float() for values_T, row in zip(values_BT, batch.rows, strict=True)]
