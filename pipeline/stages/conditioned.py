"""conditioned: train on condition labels, then request the result by its label.

Every scored sample is labelled with the bin of its reward (or of any attribute), as text in front of the prompt, and is
imitated under its label. Under the label of the best bin the model then answers like its best samples. Source: Decision
Transformer (arXiv:2106.01345), Quark (arXiv:2205.13636). FeedME keeps the best samples; this stage labels all of them.
The control is trained on shuffled labels; `filtered_control` applies FeedME's selection to the same pool.
"""

from __future__ import annotations

import random
import shutil
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.schema import Attribute
from pipeline.credit import conditioning
from pipeline.credit.conditioning import Axis, Conditions
from pipeline.data import condition_prompts
from pipeline.data.completion_text import completion_text
from pipeline.data.prompts import has_completion, prompt_text
from pipeline.distributed import ranks
from pipeline.records import Prompt, Rollout, Scored, episodes, merge_episode, merged_episodes
from pipeline.run import console
from pipeline.score import score
from pipeline.seeds import cycle_indices
from pipeline.stages import control_curve
from pipeline.stages.context import Context
from pipeline.stages.imitation import ImitationRow, sampled_rows
from pipeline.stages.label_tokens import with_new_tokens
from pipeline.stages.sampling import draw, from_pool, next_prompts, open_generator, restored
from pipeline.stages.sft import encode_last, train


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    attributes = attributes_of(ctx)
    start = ctx.policy_path
    pool = first_pool(ctx) + scored_demonstrations(ctx)
    conditions = fit(ctx, attributes, pool)
    if block.vocabulary == "special":
        start = with_new_tokens(ctx, [axis.text(i) for axis in conditions.axes for i in range(axis.count)])
    else:
        texts = [axis.text(i) for axis in conditions.axes for i in range(axis.count)]
        condition_prompts.check_written(texts, ctx.tokenizer, f"{ctx.cfg.path}: {ctx.name}.label")
    report_bins(ctx, conditions, pool)
    model_dir = ctx.dir.model_dir
    steps = teach(ctx, start, labelled(ctx, pool, conditions, attributes), model_dir, "labels", anchor=start)
    tops = [control_curve.top_accuracy(ctx, str(model_dir), conditions, "offline")] if block.online_rounds else []
    for number in range(block.online_rounds):
        pool += online_pool(ctx, conditions, number)
        conditions = fit(ctx, attributes, pool)  # quantiles move with the pool, as in Quark
        examples = labelled(ctx, pool, conditions, attributes, number + 1)
        steps += teach(ctx, str(model_dir), examples, model_dir, "online", number, anchor=start)
        tops.append(control_curve.top_accuracy(ctx, str(model_dir), conditions, "online", number))
    ranks.from_main(lambda: condition_prompts.save(conditions, ctx.tokenizer, model_dir))
    metrics = control_curve.judge(ctx, str(model_dir), conditions, start=start)
    metrics |= {"top_accuracy_by_round": tops, "pool_size": len(episodes(pool))}
    spent = dict(ctx.tokens)
    if block.shuffled_control:
        metrics |= shuffled(ctx, start, pool, conditions, attributes)
    if block.filtered_control:
        metrics |= filtered_sft(ctx, pool, conditions, attributes, steps)
    ctx.tokens = spent  # controls do not count towards the budget
    return metrics


# --- the pool ------------------------------------------------------------------------------------------------------


def first_pool(ctx: Context) -> list[Scored]:
    """Samples from the stages or files named in the YAML, or from the policy; unusable samples are left out."""
    block = ctx.block
    if block.pool:
        return from_pool(ctx, block.pool, f"{ctx.name}.pool")
    drawn_prompts = next_prompts(ctx, ctx.train_prompts, block.prompts)
    samples = draw(ctx, ctx.generator(), drawn_prompts, block.samples, "pool", budget=share_of_budget(ctx))
    ctx.record(samples, round=0, asked="")
    return usable(ctx, samples)


def online_pool(ctx: Context, conditions: Conditions, number: int) -> list[Scored]:
    """Samples drawn under the best label, to be relabelled with the result they obtained."""
    block = ctx.block
    label = conditions.text(conditions.best)
    unlabelled = next_prompts(ctx, ctx.train_prompts, block.prompts, number=number + 1)
    labelled = asked_for(ctx, unlabelled, label)
    generator = open_generator(ctx, str(ctx.dir.model_dir), labelled, unlabelled, guidance=block.guidance)
    samples = draw(ctx, generator, labelled, block.samples, "online", number, budget=share_of_budget(ctx))
    ctx.record(samples, round=number + 1, asked=label)
    # the pool holds unlabelled prompts: controls see no label, and the KL is measured against the unlabelled prompt
    return usable(ctx, restored(samples, labelled, unlabelled))


def share_of_budget(ctx: Context) -> int | None:
    budget: int | None = ctx.block.token_budget
    return None if budget is None else budget // (1 + ctx.block.online_rounds)


def usable(ctx: Context, found: Sequence[Scored]) -> list[Scored]:
    """Rows of the completions and episodes that ended and have a score. Raises ConfigError if there are none."""
    merged = ((episode, merge_episode(episode)) for episode in episodes(found))
    out = [row for episode, s in merged if s.scorable and s.rollout.finished for row in episode]
    if not out:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}: no scorable, finished sample to train on"])
    return out


def scored_demonstrations(ctx: Context) -> list[Scored]:
    """SFT rows treated as samples: their rewards are ones the policy rarely reaches."""
    count = ctx.block.demonstrations
    if not count:
        return []
    answered = array("q", (i for i, row in enumerate(ctx.split.train) if has_completion(row, ctx.cfg.prompts)))
    order = cycle_indices(len(answered), 0, min(count, len(answered)), ctx.cfg.seed, ctx.name, "demos")
    chosen = [ctx.split.train[answered[i]] for i in order]
    out = []
    for row, example in zip(chosen, encode_last(chosen, ctx.cfg.prompts, ctx), strict=True):
        prompt = ctx.train_prompts.find(prompt_text(row, ctx.cfg.prompts))
        if prompt is not None:
            ids = example.completion_ids
            text = completion_text(ctx.tokenizer, ids, example.prompt_ids)
            out.append(Rollout(prompt, 0, ids, (0.0,) * len(ids), text, True))
    return [s for s in score(ctx.scorer, out) if s.scorable]


# --- labels --------------------------------------------------------------------------------------------------------


def attributes_of(ctx: Context) -> dict[str, Attribute]:
    """The attributes from the YAML, or only the reward."""
    block = ctx.block
    return block.attributes or {
        "reward": Attribute("reward", block.label, block.bins, block.count, list(block.edges))
    }  # fmt: skip


def values_of(attribute: Attribute, pool: Sequence[Scored]) -> list[float]:
    """The attribute's value for each sample. Raises ValueError if it names a reward part that does not exist."""
    samples = merged_episodes(pool)
    values = [control_curve.measure(attribute.of, s) for s in samples]
    if not attribute.per_prompt:
        return values
    return conditioning.from_prompt_mean(values, [s.rollout.prompt.index for s in samples])


def fit(ctx: Context, attributes: dict[str, Attribute], pool: Sequence[Scored]) -> Conditions:
    """The axes with their edges and the pool's statistics for each bin."""
    axes = []
    for name, attribute in attributes.items():
        where = f"{ctx.cfg.path}: {ctx.name}" + (f".attributes.{name}" if ctx.block.attributes else "")
        try:
            values = values_of(attribute, pool)
            edges = (list(attribute.edges) if attribute.bins == "edges"
                     else conditioning.quantile_edges(values, attribute.count))  # fmt: skip
            axis = Axis(
                name,
                tuple(edges),
                attribute.label,
                attribute.of,
                attribute.prefer,
                attribute.per_prompt,
                words=tuple(attribute.words),
            )
            axes.append(axis.fitted(values))
        except ValueError as exc:
            raise ConfigError([f"{where}: {exc}"]) from exc
    return Conditions(tuple(axes))


def cells_of(pool: Sequence[Scored], conditions: Conditions, attributes: dict[str, Attribute]) -> list[tuple[int, ...]]:
    """Per sample, its bin on every axis."""
    columns = [[axis.bin_of(v) for v in values_of(attributes[axis.name], pool)] for axis in conditions.axes]
    return list(zip(*columns, strict=True))


def labelled(
    ctx: Context,
    pool: Sequence[Scored],
    conditions: Conditions,
    attributes: dict[str, Attribute],
    number: int = 0,
    *,
    shuffle: bool = False,
) -> list[ImitationRow]:
    """Examples balanced over bins; some have no label, or part of it. With shuffle, each gets the label of another."""
    block = ctx.block
    cells = cells_of(pool, conditions, attributes)
    if shuffle:
        cells = conditioning.shuffled(cells, seed=ctx.seed("shuffle"))
    chosen = conditioning.balanced(cells, per_bin=block.per_bin, seed=ctx.seed("balance", number))
    rng = random.Random(ctx.seed("dropout", number))
    names = [axis.name for axis in conditions.axes]
    rendered: dict[tuple[int, str], Prompt] = {}
    samples, own = episodes(pool), ctx.train_prompts if ctx.cfg.tools is not None else ()
    out: list[ImitationRow] = []
    left_out = 0
    for index in chosen:
        first = samples[index][0].rollout.prompt
        # an environment may have added to an episode's prompt
        prompt = own[first.index] if first.index < len(own) else first
        asked = conditioning.some_dropped(dict(zip(names, cells[index], strict=True)), block.label_dropout, rng)
        key = (prompt.index, conditions.text(asked))
        if key not in rendered:
            rendered[key] = condition_prompts.relabel(prompt, key[1], ctx.cfg.prompts, ctx.tokenizer)
        rows = labelled_rows(samples[index], prompt, rendered[key])
        left_out += not rows
        out += rows
    if left_out:
        console.say(f"{ctx.name}: {left_out} of {len(chosen)} episodes left out: the chat template begins the "
                    "conversation differently in later turns, so the label has no position there")  # fmt: skip
    return out


def labelled_rows(sample: Sequence[Scored], own: Prompt, prompt: Prompt) -> list[ImitationRow]:
    """The rows of a completion or an episode, which began with `own`, under the label of `prompt`; [] if one cannot
    have it."""
    out = []
    for row, unlabelled in zip(sampled_rows(sample), sample, strict=True):
        under = condition_prompts.moved(unlabelled.rollout.prompt, own, prompt)
        if under is None:
            return []
        out.append(replace(row, prompt_ids=under.ids, unlabelled_ids=row.prompt_ids))
    return out


def asked_for(ctx: Context, prompts: Sequence[Prompt], label: str) -> list[Prompt]:
    return [condition_prompts.relabel(p, label, ctx.cfg.prompts, ctx.tokenizer) for p in prompts]


def teach(
    ctx: Context, start: str, examples: Sequence[ImitationRow], target: Path, *key: str | int, anchor: str
) -> int:
    """Imitate under labels for the configured steps. anchor: the model for the KL, which knows new label tokens."""
    block = ctx.block
    settings = block.trainer | (block.online_trainer if key[0] == "online" else {})
    figures = train(ctx, start, examples, target, settings, key=key, kl_coef=block.kl_coef, anchor=anchor)
    return int(figures["train_steps"])


def report_bins(ctx: Context, conditions: Conditions, pool: Sequence[Scored]) -> None:
    for axis in conditions.axes:
        seen = " ".join(f"{axis.text(i).strip()}:{n}" for i, n in enumerate(axis.seen))
        console.say(f"{ctx.name}: {len(episodes(pool))} samples by {axis.name}: {seen}")
        for number, n in enumerate(axis.seen):
            if not n:
                console.say(f"{ctx.name}: warning: {conditions.warnings({axis.name: number})[0]}")


# --- controls ------------------------------------------------------------------------------------------------------


def shuffled(
    ctx: Context, start: str, pool: Sequence[Scored], conditions: Conditions, attributes: dict[str, Attribute]
) -> dict[str, Any]:
    """The same training with shuffled labels: any control that remains is an artefact."""
    target = ctx.dir.path / "control"
    teach(ctx, start, labelled(ctx, pool, conditions, attributes, shuffle=True), target, "shuffled", anchor=start)
    answers = control_curve.ask_all(ctx, str(target), conditions, conditions.main, "shuffled")
    curve = control_curve.curve_of(conditions.main, answers)
    overall = control_curve.overall(curve)
    return {"shuffled_spearman": control_curve.rank_correlation(control_curve.solvable(conditions.main, curve)),
            "shuffled_curve": curve, "shuffled_overall": overall,
            "shuffled_max_gap": max(abs(c["obtained"] - overall) for c in curve)}  # fmt: skip


def filtered_sft(
    ctx: Context, pool: Sequence[Scored], conditions: Conditions, attributes: dict[str, Attribute], steps: int
) -> dict[str, float]:
    """Train on the best bin's samples only, without labels, for as many steps: FeedME's selection on the same pool.

    With several attributes, the best bins may have no sample in common: the control is then unavailable, and a line
    reports it.
    """
    best = tuple(conditions.best.values())
    cells = cells_of(pool, conditions, attributes)
    kept = [sample for sample, cell in zip(episodes(pool), cells, strict=True) if cell == best]
    if not kept:
        console.say(f"{ctx.name}: filtered_control is not available: no sample lies in the best bin of every attribute")
        return {}
    target = ctx.dir.path / "filtered"
    train(ctx, ctx.policy_path, [row for sample in kept for row in sampled_rows(sample)], target,
          {**ctx.block.trainer, "max_steps": steps}, key=("filtered",))  # fmt: skip
    judged = ctx.evaluate(ctx.generator(str(target)), "filtered")
    ranks.from_main(lambda: shutil.rmtree(target))
    return {"filtered_sft_accuracy": float(judged.figures["heldout_accuracy"])}
