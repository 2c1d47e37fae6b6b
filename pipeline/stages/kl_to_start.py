"""How far a policy is from where it started, measured on its own held-out samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.data.condition_prompts import moved, relabel
from pipeline.distributed import ranks
from pipeline.models import models
from pipeline.records import Prompt, Scored, merged_episodes
from pipeline.score import score
from pipeline.stages.context import Context, Judged
from pipeline.stats import mean
from pipeline.update.forward import CompletionLogprobs, Row, completion_logprobs

BUDGET = 16_384  # tokens of one forward pass


@dataclass(frozen=True, slots=True)
class KlToStart:
    """In nats."""

    per_completion: float
    per_token: float


def mean_kl(
    rows: Sequence[Row], policy_logprobs: Sequence[Sequence[float]], start_logprobs: Sequence[Sequence[float]]
) -> KlToStart:
    """KL(policy || start) on the policy's own samples: the mean of log-prob minus the start's (k1, unbiased).

    One log-prob per completion token of each row, in the order of `rows`; tokens the policy did not choose (mask False)
    count nowhere.
    """
    gaps = [sum(a - b for a, b, sampled in zip(now, before, row.mask, strict=True) if sampled)
            for row, now, before in zip(rows, policy_logprobs, start_logprobs, strict=True)]  # fmt: skip
    tokens = sum(sum(row.mask) for row in rows)
    return KlToStart(mean(gaps), sum(gaps) / tokens if tokens else float("nan"))


def kl_from(
    ctx: Context, scored: Sequence[Scored], start: str, *, unlabelled: Mapping[int, Prompt] | None = None
) -> float:
    """KL(policy || start) in nats per completion or episode, with the log-probs that the policy's generator gave.

    unlabelled: prompt index -> the prompt the start reads, where the policy read a condition label in front of it.
    """
    read = [without_label(ctx, s.rollout.prompt, unlabelled or {}) for s in scored]
    measured = [(s, prompt) for s, prompt in zip(scored, read, strict=True) if prompt is not None]
    rows = [Row(p.ids, s.rollout.ids, s.rollout.mask) for s, p in measured]
    per_row = mean_kl(rows, [s.rollout.logprobs for s, _ in measured], start_logprobs(ctx, start, rows)).per_completion
    count = sum(s.rollout.turn == 0 for s, _ in measured)  # episodes, some of several rows
    return per_row if count in (0, len(rows)) else per_row * len(rows) / count


def without_label(ctx: Context, prompt: Prompt, unlabelled: Mapping[int, Prompt]) -> Prompt | None:
    """The prompt of a row without its label; None where it cannot be removed (`condition_prompts.with_start`)."""
    own = unlabelled.get(prompt.index, prompt)
    if own is prompt or ctx.cfg.tools is None:
        return own
    return moved(prompt, relabel(own, prompt.label, ctx.cfg.prompts, ctx.tokenizer), own)


def start_logprobs(ctx: Context, start: str, rows: Sequence[Row]) -> list[list[float]]:
    """Log-probs under the model at `start`, at the sampling temperature.

    The model is loaded once per stage and waits in host memory between calls: `evaluate_every` measures often.
    """
    if start not in ctx.frozen:
        ctx.frozen.clear()
        ctx.frozen[start] = models.load_policy(start, ctx.cfg.model).eval()
    model = ctx.frozen[start].to(models.device())
    forward = CompletionLogprobs(model, temperature=ctx.cfg.sampling.temperature)
    found = ranks.mapped(partial(completion_logprobs, forward, budget=BUDGET, device=models.device()), rows)
    model.to("cpu")
    return [logprobs.tolist() for logprobs in found]


def from_start(ctx: Context, judged: Judged, reward: Mapping[str, Any] | None) -> dict[str, float]:
    """KL of held-out samples from the stage's start, and the tokens sampled so far; with a reward of the stage's own
    also its mean over these samples."""
    out = {"heldout_kl": kl_from(ctx, judged.scored, ctx.policy_path), "sampled_tokens": ctx.tokens["completion"]}
    if reward:
        own = merged_episodes(score(ctx.scorer_of(reward), [s.rollout for s in judged.scored]))
        out["heldout_train_reward"] = mean([s.reward for s in own if s.scorable])
    return out
