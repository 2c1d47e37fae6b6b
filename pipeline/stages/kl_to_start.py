"""How far a policy has gone from where it started, and what it gained there: looks at the held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.distributed import ranks
from pipeline.models import models
from pipeline.records import Prompt, Scored
from pipeline.score import score
from pipeline.stages.context import Context, Judged
from pipeline.stats import mean
from pipeline.update.forward import CompletionLogprobs, Row, completion_logprobs

BUDGET = 16_384  # tokens of one forward pass


def kl_from(ctx: Context, scored: Sequence[Scored], start: str, *, bare: Mapping[int, Prompt] | None = None) -> float:
    """KL(policy || start) in nats a completion: the mean over the policy's own samples of log-prob minus start's.

    The policy's log-probs are those its generator gave at the sampling temperature. bare: prompt index -> the prompt
    the start is asked with, where the policy saw another (a condition in front).
    """
    asked = [(bare or {}).get(s.rollout.prompt.index, s.rollout.prompt) for s in scored]
    rows = [Row(p.ids, s.rollout.ids, s.rollout.mask) for p, s in zip(asked, scored, strict=True)]
    model = models.load_policy(start, ctx.cfg.model).eval()
    model.to(models.device())
    forward = CompletionLogprobs(model, temperature=ctx.cfg.sampling.temperature)
    before = ranks.mapped(partial(completion_logprobs, forward, budget=BUDGET, where=models.device()), rows)
    gaps = [sum(lp - b for lp, b, m in zip(s.rollout.logprobs, old.tolist(), row.mask, strict=True) if m)
            for s, old, row in zip(scored, before, rows, strict=True)]  # fmt: skip
    return mean(gaps)


def from_start(ctx: Context, judged: Judged, reward: Mapping[str, Any] | None) -> dict[str, float]:
    """KL of judged samples from the stage's start, and the tokens sampled so far; with a reward of the stage's own also
    what it says of them."""
    out = {"heldout_kl": kl_from(ctx, judged.scored, ctx.policy_path), "sampled_tokens": ctx.tokens["completion"]}
    if reward:
        own = score(ctx.scorer_of(reward), [s.rollout for s in judged.scored])
        out["heldout_train_reward"] = mean([s.reward for s in own if s.scorable])
    return out
