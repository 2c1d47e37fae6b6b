"""Held-out episodes of a policy trained on multi-turn tasks: single answers would not show what it learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.config.schema import Episodes
from pipeline.generation.episodes import load_environment, play
from pipeline.generation.generator import Generator
from pipeline.records import Prompt, episodes, merge_episode
from pipeline.stages.context import Context
from pipeline.stats import bootstrap_ci95, counts, mean, pass_rate


def judge_episodes(
    ctx: Context,
    generator: Generator,
    settings: Episodes | None,
    *key: int | str,
    starts: Sequence[Prompt] | None = None,
) -> dict[str, Any]:
    """Metrics of episodes from `starts`, by default every held-out one, and of their first turns alone; {} without
    `settings`. key: what the draws are a function of, besides the run's seed and the stage."""
    if settings is None:
        return {}
    location = f"{ctx.cfg.path}: {ctx.name}.episodes.environment"
    played = play(
        generator, load_environment(settings.environment, ctx.cfg.verifier_dirs, where=location),
        ctx.heldout_prompts if starts is None else starts, ctx.cfg.sampling, samples=ctx.cfg.evaluation.samples,
        max_turns=settings.max_turns, memory=settings.memory, key=(ctx.cfg.seed, ctx.name, "heldout episodes", *key),
        tokenizer=ctx.tokenizer, stop_token_ids=ctx.stop_token_ids, context=ctx.context_tokens(),
    )  # fmt: skip
    played_turns = [(merge_episode(e), turns_in(e)) for e in episodes(played)]
    size = ctx.cfg.evaluation.samples
    by_start = [[one for one in played_turns[i : i + size] if counts(one[0].reward, one[0].status)]
              for i in range(0, len(played_turns), size)]  # fmt: skip
    by_start = [start for start in by_start if start]
    passed = [pass_rate([one for one, _ in start]) for start in by_start]
    at_once = [mean([float(one.status == "pass" and turns == 1) for one, turns in start]) for start in by_start]
    return {
        "heldout_episode_accuracy": mean(passed),
        "heldout_episode_accuracy_ci95": list(bootstrap_ci95(passed)),
        "heldout_episode_reward": mean([mean([one.reward for one, _ in start]) for start in by_start]),
        "heldout_first_turn_accuracy": mean(at_once),
        "heldout_turns_mean": mean([turns for start in by_start for _, turns in start]),
    }


def turns_in(episode: list[Any]) -> int:
    """The number of turns: rows, or spans of sampled tokens if the episode is a single row."""
    mask = episode[0].rollout.mask
    runs = sum(now and not before for before, now in zip((False, *mask), mask, strict=False))
    return max(len(episode), runs)
