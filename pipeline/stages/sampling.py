"""Scored samples for a stage: drawn now, with scoring beside sampling, or read from a pool of earlier samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import rewards
from pipeline.config.load import ConfigError
from pipeline.data import condition_prompts, sample_pool
from pipeline.generation.generator import Generator
from pipeline.records import Prompt, Scored, episodes, groups, merged_episodes
from pipeline.run import console
from pipeline.run.stage_dir import StageDir
from pipeline.score import submit
from pipeline.seeds import cycle_indices
from pipeline.stages.context import Context
from pipeline.stages.token_budget import sample_within
from pipeline.stats import mean

CHUNK = 2048  # samples scored while the next chunk is drawn


def draw(
    ctx: Context,
    generator: Generator,
    requests: Sequence[Prompt],
    samples: int,
    *key: int | str,
    scorer: rewards.Composite | None = None,
    budget: int | None = None,
) -> list[Scored]:
    """`samples` scored samples of each prompt, prompt-major, a function of (seed, stage, key); kept on disk at once.

    Scoring of one chunk overlaps with sampling of the next. budget: completion tokens after which sampling stops.
    """
    chosen_by = scorer or ctx.scorer

    def make() -> list[Scored]:
        if budget is not None:
            return submit(chosen_by, sample_within(ctx, generator, requests, samples, *key, budget=budget))()
        step = max(CHUNK // samples, 1)
        pending = [
            submit(chosen_by, ctx.sample(generator, requests[start : start + step], samples, *key, "chunk", start))
            for start in range(0, len(requests), step)
        ]
        return [scored for finish in pending for scored in finish()]

    return ctx.kept(requests, make, *key)


def restored(scored: Sequence[Scored], labelled: Sequence[Prompt], prompts: Sequence[Prompt]) -> list[Scored]:
    """The same samples with their unlabelled prompts restored. labelled, prompts: with and without labels, paired.

    An episode is left out where a row's prompt does not begin as the labelled one: its label cannot be removed.
    """
    pairs = {after.index: (before, after) for before, after in zip(labelled, prompts, strict=True)}
    out: list[Scored] = []
    for episode in episodes(scored):
        own = [condition_prompts.moved(s.rollout.prompt, *pairs[s.rollout.prompt.index]) for s in episode]
        out += [replace(s, rollout=replace(s.rollout, prompt=prompt))
                for s, prompt in zip(episode, own, strict=True) if prompt is not None and None not in own]  # fmt: skip
    return out


def open_generator(
    ctx: Context, model_dir: str, labelled: Sequence[Prompt], unlabelled: Sequence[Prompt], *, guidance: float = 1.0
) -> Generator:
    """The run's generator, or one that guides the labelled prompts away from the same prompts unlabelled."""
    if guidance == 1.0:
        return ctx.generator(model_dir)
    from pipeline.generation.guidance import Guided

    pairs = {a.ids: b.ids for a, b in zip(labelled, unlabelled, strict=True)}
    return Guided(model_dir, ctx.cfg.model, ctx.cfg.generate, unlabelled=pairs, scale=guidance)


def next_prompts(ctx: Context, prompts: Sequence[Prompt], count: int, *, number: int = 0) -> list[Prompt]:
    """The prompts of round `number`: `count` per round, cycling through all of them."""
    indices = cycle_indices(len(prompts), number * count, count, ctx.cfg.seed, ctx.name, "order")
    return [prompts[i] for i in indices]


def round_samples(
    ctx: Context, policy: str, number: int, *, scorer: rewards.Composite | None = None, spent: int
) -> list[Scored]:
    """The scored samples of one round: drawn from the policy and recorded, or read from the pool that the YAML names.

    spent: completion tokens of the stage's earlier rounds. A token budget is shared out evenly over the rounds, and
    what a round leaves is the next one's.
    """
    block = ctx.block
    if block.pool:
        return from_pool(ctx, block.pool, f"{ctx.name}.pool")
    requests = next_prompts(ctx, ctx.train_prompts, block.prompts, number=number)
    budget = block.token_budget and max(block.token_budget * (number + 1) // block.rounds - spent, 1)
    scored = draw(ctx, ctx.generator(policy), requests, block.samples, block.kind, number, scorer=scorer, budget=budget)
    ctx.record(scored, round=number)
    return scored


def from_pool(ctx: Context, references: Sequence[str], key: str) -> list[Scored]:
    """Usable samples from stages of this run or from files, without the run's held-out prompts; read once per stage.
    One line accounts for the rows that are not used. Registers the files it reads.

    Raises ConfigError if no usable sample is left.
    """
    if key in ctx.pools:
        return ctx.pools[key]
    entries = []
    for reference in references:
        path = Path(reference)
        if reference in ctx.cfg.blocks:
            ctx.model_path(reference, key)  # registers the parent and checks its files
            path = StageDir(ctx.cfg.run_dir, reference).path / "rollouts.jsonl"
        elif path.is_file():
            ctx.depend_on(path)
        entries += sample_pool.read(path, ctx.cfg.prompts, ctx.tokenizer, ctx.stop_token_ids)
    placed = sample_pool.placed(entries, ctx.train_prompts, barred=ctx.barred)
    samples, counts = sample_pool.usable(placed), sample_pool.left_out(entries, placed)
    # rows of an episode are samples of their own here: some of them may have been left out
    samples = [replace(s, rollout=replace(s.rollout, turn=0)) for s in samples]
    if not samples:
        raise ConfigError([f"{ctx.cfg.path}: {key}: nothing to train on in {', '.join(references)}: {counts}"])
    if counts:
        console.say(f"{key}: {counts}")
    ctx.pools[key] = samples
    return samples


def reward_when_solved(scored: Sequence[Scored]) -> float:
    """Mean reward of the samples that passed: how good a success is, apart from how frequent. NaN if none passed."""
    return mean([s.reward for s in merged_episodes(scored) if s.status == "pass" and s.scorable])


def best_of(scored: Sequence[Scored], n: int) -> list[Scored]:
    """The best of every n samples of a prompt, in order; the remainder of a group is not used."""
    out = []
    for group in groups([s for s in scored if s.scorable]):
        for start in range(0, len(group) - n + 1, n):
            out.append(max(group[start : start + n], key=lambda s: s.reward))
    return out
