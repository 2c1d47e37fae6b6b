"""grpo: samples of one prompt are each other's baseline; usually against verifiers (RLVR).

For the rewards r_1..r_G of one prompt's G samples, and the ratio rho_t = p(y_t) / p_old(y_t) of each token:

    credit   A_i = (r_i - mean(r)) / std(r)                                   the same for every token of sample i
    loss     L_t = -min(rho_t A_i, clip(rho_t, 1 - clip_low, 1 + clip_high) A_i)
    KL       q/p - 1 - log(q/p) per token (k3), times kl.coef, added to the loss

No critic: groups need at least 2 samples, and a group of equal rewards gives no signal. The defaults below depart from
the paper in kl.coef 0 and in the mean over tokens instead of sequences (both as DAPO, arXiv:2503.14476);
`method: grpo` sets them as published.
Source: DeepSeekMath, arXiv:2402.03300 §4.1.
"""

from __future__ import annotations

from typing import Any

from pipeline.config.schema import Credit, Kl, Loss
from pipeline.stages.context import Context
from pipeline.stages.policy import Method, train_policy

GRPO = Method(
    credit=Credit(kind="group", scale=True),
    loss=Loss(kind="clip", clip_low=0.2, clip_high=0.2, aggregate="token_mean"),
    kl=Kl(coef=0.0, where="loss", kind="k3"),
)


def run(ctx: Context) -> dict[str, Any]:
    return train_policy(ctx, GRPO)


__all__ = ["GRPO", "run"]
