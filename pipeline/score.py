"""Rollouts -> Scored, through rewards/. The only place where a reward is attached to a rollout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import rewards
from pipeline import ranks
from pipeline.records import Rollout, Scored


def as_batch(rollouts: Sequence[Rollout]) -> rewards.Batch:
    return rewards.Batch(
        prompts=[r.prompt.text for r in rollouts],
        prompt_ids=[list(r.prompt.ids) for r in rollouts],
        completions=[r.text for r in rollouts],
        completion_ids=[list(r.ids) for r in rollouts],
        finished=[r.finished for r in rollouts],
        tasks=[r.prompt.task for r in rollouts],
    )


def submit(scorer: rewards.Composite, rollouts: Sequence[Rollout]) -> Callable[[], list[Scored]]:
    """Start scoring; call the result to wait for it. Order is kept. Of several ranks each scores its share."""
    mine = ranks.share(len(rollouts))
    pending = scorer.submit(as_batch(rollouts[mine.start : mine.stop]))

    def finish() -> list[Scored]:
        return [
            Scored(rollout, score.reward, score.status, score.parts, score.detail, step_rewards=score.step_rewards)
            for rollout, score in zip(rollouts, ranks.gather(pending.result()), strict=True)
        ]

    return finish


def score(scorer: rewards.Composite, rollouts: Sequence[Rollout]) -> list[Scored]:
    return submit(scorer, rollouts)()


@dataclass(frozen=True, slots=True)
class Tally:
    """What a batch of scores amounts to, the three outcomes apart."""

    reward_mean: float
    reward_std: float
    passed: float
    malformed: float
    broken: float


def tally(scored: Sequence[Scored]) -> Tally:
    """Shares over all rows; reward over those that could be scored."""
    n = max(len(scored), 1)
    values = [s.reward for s in scored if s.scorable]
    mean = math.fsum(values) / len(values) if values else math.nan
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values) if values else math.nan
    share = {status: sum(s.status == status for s in scored) / n for status in ("pass", "malformed", "error")}
    return Tally(mean, math.sqrt(variance), share["pass"], share["malformed"], share["error"])
