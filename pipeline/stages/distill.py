"""distill: the policy samples, and a teacher says of each sampled token how likely it is.

With the policy p and the teacher q of a token, at the sampling temperature:

    sampled   A_t = coef (log q - log p) + reward_coef A(reward)      the policy gradient of the reverse KL
    full      L_t = surrogate(reward_coef A(reward)) + coef D(p, q)   D over the whole vocabulary or the policy's top k

D is reverse KL (beta 1), forward KL (0) or the Jensen-Shannon divergence between (GKD, arXiv:2306.13649). The teacher
is another model, or the policy itself shown the demonstration (SDFT, arXiv:2601.19897) or the verifier's detail on its
own failed try (SDPO, arXiv:2601.20802). All else is the policy loop's; `teacher:` works in a grpo block too.
Source: thinkingmachines.ai/blog/on-policy-distillation (2025).
"""

from __future__ import annotations

from typing import Any

from pipeline.stages.context import Context
from pipeline.stages.grpo import GRPO
from pipeline.stages.policy import train_policy


def run(ctx: Context) -> dict[str, Any]:
    return train_policy(ctx, GRPO)
