"""ppo: a critic's GAE, the KL in the reward; usually against a learned reward (RLHF).

For the score R of a completion, the critic's values V_t and the ratio rho_t = p(y_t) / p_old(y_t) of each token:

    reward   r_t = -kl.coef * log(p(y_t) / q(y_t)), plus R on the last token         q: the reference; k1
    credit   delta_t = r_t + gamma V_(t+1) - V_t;   A_t = sum over l of (gamma lam)^l delta_(t+l), then whitened
    loss     L_t = -min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t)
    critic   max((V_t - G_t)^2, (clip(V_t, V_old +- critic.clip) - G_t)^2) / 2 with the return G_t = A_t + V_t

The critic starts on the reward model's backbone with a head of zeros and learns alone for critic.warmup_steps.
Source: PPO, arXiv:1707.06347 eq. 7; GAE, arXiv:1506.02438 eq. 16; RLHF's reward, arXiv:1909.08593 eq. 2. It is the last
step of text-davinci-003's lineage (InstructGPT, arXiv:2203.02155).
"""

from __future__ import annotations

from typing import Any

from pipeline.config.schema import Credit, Kl, Loss
from pipeline.stages.context import Context
from pipeline.stages.policy import Method, train_policy

PPO = Method(
    credit=Credit(kind="gae", gamma=1.0, lam=0.95, whiten=True),
    loss=Loss(kind="clip", clip_low=0.2, clip_high=0.2, aggregate="token_mean"),
    kl=Kl(coef=0.05, where="reward", kind="k1"),
)


def run(ctx: Context) -> dict[str, Any]:
    return train_policy(ctx, PPO)


__all__ = ["PPO", "run"]
