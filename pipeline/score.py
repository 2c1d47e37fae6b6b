"""Rollouts -> Scored, through rewards/. The only place where a reward is attached to a rollout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import rewards
from pipeline.distributed import ranks
from pipeline.records import Prompt, Rollout, Scored

OnDrawn = Callable[[int, Rollout], None]


def as_batch(rollouts: Sequence[Rollout]) -> rewards.Batch:
    return rewards.Batch(
        prompts=[r.prompt.text for r in rollouts],
        prompt_ids=[list(r.prompt.ids) for r in rollouts],
        completions=[r.text for r in rollouts],
        completion_ids=[list(r.ids) for r in rollouts],
        finished=[r.finished for r in rollouts],
        tasks=[r.prompt.task for r in rollouts],
    )


def score_while(
    scorer: rewards.Composite, prompts: Sequence[Prompt], sample: Callable[[OnDrawn | None], Sequence[Rollout]]
) -> list[Scored]:
    """sample(on_drawn) draws rollouts of the prompts and calls on_drawn for each: slow verifiers start on it meanwhile.

    With several ranks, or if no verifier is slow, scoring starts when all are drawn.
    """
    stream = scorer.stream()
    if ranks.world() > 1 or not any(stream.pays_early(p.task) for p in prompts):
        return score(scorer, sample(None))
    drawn = sample(lambda number, rollout: stream.add(number, rollout.text, rollout.prompt.task))
    return _scored(drawn, stream.finish(as_batch(drawn)).result())


def submit(scorer: rewards.Composite, rollouts: Sequence[Rollout]) -> Callable[[], list[Scored]]:
    """Start scoring; call the result to wait for it. Order is kept. Each rank scores its share."""
    mine = ranks.share(len(rollouts))
    pending = scorer.submit(as_batch(rollouts[mine.start : mine.stop]))

    def finish() -> list[Scored]:
        return _scored(rollouts, ranks.gather(pending.result()))

    return finish


def _scored(rollouts: Sequence[Rollout], scores: Sequence[rewards.Score]) -> list[Scored]:
    return [
        Scored(rollout, score.reward, score.status, score.parts, score.detail, step_rewards=score.step_rewards)
        for rollout, score in zip(rollouts, scores, strict=True)
    ]


def score(scorer: rewards.Composite, rollouts: Sequence[Rollout]) -> list[Scored]:
    return submit(scorer, rollouts)()


@dataclass(frozen=True, slots=True)
class Tally:
    """Summary of a batch of scores, the three outcomes apart."""

    reward_mean: float
    reward_std: float
    passed: float
    malformed: float
    broken: float


def tally(scored: Sequence[Scored]) -> Tally:
    """Shares over all rows; reward over the scorable ones."""
    n = max(len(scored), 1)
    values = [s.reward for s in scored if s.scorable]
    mean = math.fsum(values) / len(values) if values else math.nan
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values) if values else math.nan
    passed, malformed = (sum(s.status == status for s in scored) / n for status in ("pass", "malformed"))
    return Tally(mean, math.sqrt(variance), passed, malformed, sum(not s.scorable for s in scored) / n)
