"""Rollouts -> Scored, through rewards/. The only place where a reward is attached to a rollout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rewards
from pipeline.distributed import ranks
from pipeline.records import Prompt, Rollout, Scored
from pipeline.seeds import rng

OnDrawn = Callable[[int, Rollout], None]
Key = tuple[int | str, ...]


def as_batch(rollouts: Sequence[Rollout], draws: Sequence[float] | None = None) -> rewards.Batch:
    """draws: per row, a uniform number in [0, 1), by which surrogate parts choose what to check; None: everything."""
    return rewards.Batch(
        prompts=[r.prompt.text for r in rollouts],
        prompt_ids=[list(r.prompt.ids) for r in rollouts],
        completions=[r.answer for r in rollouts],
        completion_ids=[list(r.ids) for r in rollouts],
        finished=[r.finished for r in rollouts],
        tasks=[_task_of(r) for r in rollouts],
        draws=draws,
    )


def _draws(count: int, key: Key | None) -> list[float] | None:
    """A uniform number per row, a function of (key, index); None without a key."""
    return None if key is None else [float(x) for x in rng(*key).random(count)]


def _task_of(rollout: Rollout) -> Mapping[str, Any]:
    """The prompt's task; of an episode with tools, with its columns for reward functions."""
    if rollout.episode is None:
        return rollout.prompt.task
    of_episode = {"tool_calls": rollout.episode["calls"], "environment_reward": rollout.episode["reward"]}
    return {**rollout.prompt.task, **of_episode}


def score_while(
    scorer: rewards.Composite, prompts: Sequence[Prompt], sample: Callable[[OnDrawn | None], Sequence[Rollout]],
    *, key: Key | None = None,
) -> list[Scored]:  # fmt: skip
    """sample(on_drawn) draws rollouts of the prompts and calls on_drawn for each: slow verifiers start on it meanwhile.

    With several ranks, or if no verifier is slow, scoring starts when all are drawn. key: see `submit`.
    """
    stream = scorer.stream()
    if ranks.world() > 1 or not any(stream.pays_early(p.task) for p in prompts):
        return score(scorer, sample(None), key=key)
    drawn = sample(lambda number, rollout: stream.add(number, rollout.answer, _task_of(rollout)))
    judged = _last_rows(drawn)
    return _scored(drawn, stream.finish(as_batch(judged, _draws(len(judged), key))).result())


def submit(
    scorer: rewards.Composite, rollouts: Sequence[Rollout], *, key: Key | None = None
) -> Callable[[], list[Scored]]:
    """Start scoring; call the result to wait for it. Order is kept. Each rank scores its share.

    key: what surrogate parts choose the rows to check by, (seed, stage, step, ...); None: they check every row.
    """
    judged = _last_rows(rollouts)
    mine, draws = ranks.share(len(judged)), _draws(len(judged), key)
    own = None if draws is None else draws[mine.start : mine.stop]
    pending = scorer.submit(as_batch(judged[mine.start : mine.stop], own))

    def finish() -> list[Scored]:
        return _scored(rollouts, ranks.gather(pending.result()))

    return finish


def _last_rows(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The row of each episode that holds its answer: the one before the next row of turn 0."""
    return [r for r, after in zip(rollouts, [*rollouts[1:], None], strict=True) if after is None or after.turn == 0]


def _scored(rollouts: Sequence[Rollout], scores: Sequence[rewards.Score]) -> list[Scored]:
    """scores: one per episode. The last row of an episode has its reward, the earlier ones 0 and its status."""
    out: list[Scored] = []
    rows = iter(rollouts)
    for last, score in zip(_last_rows(rollouts), scores, strict=True):
        final = _of_row(last, score)
        while (row := next(rows)) is not last:
            out.append(Scored(row, 0.0 if final.scorable else math.nan, final.status, {}, final.detail))
        out.append(final)
    return out


def _of_row(rollout: Rollout, score: rewards.Score) -> Scored:
    """A row's score. An episode that a tool broke has none; one that its environment did not reward did not pass."""
    status, reward, detail = score.status, score.reward, score.detail
    if rollout.episode is not None and rollout.episode["fault"]:
        return Scored(rollout, math.nan, "error", score.parts, str(rollout.episode["fault"]))
    earned = score.parts.get("environment")
    if rollout.episode is not None and status == "pass" and earned is not None and earned <= 0:
        status = "fail"
    return Scored(rollout, reward, status, score.parts, detail, step_rewards=score.step_rewards)


def score(scorer: rewards.Composite, rollouts: Sequence[Rollout], *, key: Key | None = None) -> list[Scored]:
    return submit(scorer, rollouts, key=key)()
