"""conditioned: tell the model which reward to reach, and it reaches it.

Scored samples are labelled with the bin their reward falls in, as plain text in front of the prompt; all of them are
imitated under their label; asked for the best bin the model answers as its best samples did. Decision Transformer
(arXiv:2106.01345), Quark (arXiv:2205.13636). The control is trained on shuffled labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import console
from pipeline.config import ConfigError
from pipeline.credit import conditioning
from pipeline.prompts import render_ids
from pipeline.records import Prompt, Scored, groups, read_scored
from pipeline.score import score
from pipeline.seeds import cycle_indices
from pipeline.stages.budget import sample_within
from pipeline.stages.context import Context
from pipeline.stages.sft import Example, encode, train
from pipeline.stats import bootstrap_ci95, describe_groups, mean, spearman


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    pool = sampled_pool(ctx, ctx.policy_path, ctx.train_prompts, "pool")
    pool += scored_demonstrations(ctx)
    edges = bin_edges(ctx, pool)
    labels = [conditioning.label_text(block.label, i) for i in range(len(edges) + 1)]
    console.say(f"{ctx.name}: {len(pool)} samples in bins " + " ".join(str(c) for c in bin_counts(pool, edges)))
    train(ctx, ctx.policy_path, labelled(ctx, pool, edges, labels), ctx.dir.model_dir, block.trainer, key=("labels",))
    for number in range(block.online_rounds):
        pool += sampled_pool(
            ctx, str(ctx.dir.model_dir), asked_for(ctx, ctx.train_prompts, labels[-1]), "online", number
        )
        examples = labelled(ctx, pool, edges, labels, number + 1)
        train(ctx, str(ctx.dir.model_dir), examples, ctx.dir.model_dir, block.trainer, key=("online", number))
    metrics = judge(ctx, str(ctx.dir.model_dir), edges, labels)
    if block.shuffled_control:
        place = ctx.dir.place / "control"
        train(
            ctx,
            ctx.policy_path,
            labelled(ctx, pool, edges, labels, shuffle=True),
            place,
            block.trainer,
            key=("shuffled",),
        )
        control = judge(ctx, str(place), edges, labels, "shuffled")
        metrics |= {"shuffled_spearman": control["spearman_of_bin_means"], "shuffled_curve": control["control_curve"],
                    "shuffled_overall": control["overall_reward"]}  # fmt: skip
    return metrics


def sampled_pool(ctx: Context, policy: str, asked: Sequence[Prompt], *key: int | str) -> list[Scored]:
    """Scored samples, from the files the YAML names or from the policy. Rows that cannot be scored are left out."""
    block = ctx.block
    if block.pool and key == ("pool",):
        heldout = {p.text for p in ctx.heldout_prompts}
        found = [s for path in block.pool for s in read_scored(Path(path)) if s.rollout.prompt.text not in heldout]
    else:
        places = cycle_indices(len(asked), 0, block.prompts, ctx.cfg.seed, ctx.name, *key, "order")
        within = None if block.token_budget is None else block.token_budget // (1 + block.online_rounds)
        chosen = [asked[i] for i in places]
        drawn = sample_within(ctx, ctx.generator(policy), chosen, block.samples, *key, budget=within)
        found = score(ctx.scorer, drawn)
        ctx.record(found, asked=key[0])
    usable = [s for s in found if s.scorable and s.rollout.finished]
    if not usable:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}: not one scorable, finished sample to learn from"])
    return usable


def scored_demonstrations(ctx: Context) -> list[Scored]:
    """SFT rows as if they had been sampled: they hold rewards the policy seldom reaches."""
    from pipeline.records import Rollout

    count = ctx.block.demonstrations
    if not count:
        return []
    rows = ctx.split.train
    by_text = {p.text: p for p in ctx.train_prompts}
    chosen = [rows[i] for i in cycle_indices(len(rows), 0, min(count, len(rows)), ctx.cfg.seed, ctx.name, "demos")]
    out = []
    for row, example in zip(chosen, encode(chosen, ctx.cfg.prompts, ctx), strict=True):
        from pipeline.prompts import prompt_text

        prompt = by_text.get(prompt_text(row, ctx.cfg.prompts))
        if prompt is not None:
            text = ctx.tokenizer.decode(list(example.completion_ids), skip_special_tokens=True)
            ids = example.completion_ids
            out.append(Rollout(prompt, 0, ids, (0.0,) * len(ids), text, True))
    return [s for s in score(ctx.scorer, out) if s.scorable]


def bin_edges(ctx: Context, pool: Sequence[Scored]) -> list[float]:
    block = ctx.block
    if block.bins == "edges":
        return list(block.edges)
    try:
        return conditioning.quantile_edges([s.reward for s in pool], block.count)
    except ValueError as exc:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.bins: {exc}"]) from exc


def bin_counts(pool: Sequence[Scored], edges: Sequence[float]) -> list[int]:
    bins = [conditioning.bin_of(s.reward, edges) for s in pool]
    return [bins.count(i) for i in range(len(edges) + 1)]


def labelled(
    ctx: Context,
    pool: Sequence[Scored],
    edges: Sequence[float],
    labels: Sequence[str],
    number: int = 0,
    *,
    shuffle: bool = False,
) -> list[Example]:
    """Balanced over bins; some without a label; with shuffle, each under the label of another."""
    block = ctx.block
    bins = [conditioning.bin_of(s.reward, edges) for s in pool]
    if shuffle:
        bins = conditioning.shuffled(bins, seed=ctx.seed("shuffle"))
    chosen = conditioning.balanced(bins, per_bin=block.per_bin, seed=ctx.seed("balance", number))
    bare = conditioning.dropped(len(chosen), block.label_dropout, seed=ctx.seed("dropout", number))
    rendered: dict[tuple[int, str], tuple[int, ...]] = {}
    out = []
    for place, without in zip(chosen, bare, strict=True):
        rollout = pool[place].rollout
        label = "" if without else labels[bins[place]]
        key = (rollout.prompt.index, label)
        if key not in rendered:
            rendered[key] = relabel(ctx, rollout.prompt, label).ids
        out.append(Example(rendered[key], rollout.ids))
    return out


def relabel(ctx: Context, prompt: Prompt, label: str) -> Prompt:
    """The same prompt with a condition in front; index, text and task stay, so it is judged as before."""
    row = prompt.row or {ctx.cfg.prompts.prompt: prompt.text}
    return replace(prompt, ids=tuple(render_ids(row, ctx.cfg.prompts, ctx.tokenizer, label=label)))


def asked_for(ctx: Context, prompts: Sequence[Prompt], label: str) -> list[Prompt]:
    return [relabel(ctx, p, label) for p in prompts]


def judge(ctx: Context, model_dir: str, edges: Sequence[float], labels: Sequence[str], *key: str) -> dict[str, Any]:
    """What was obtained for every bin asked, on held-out prompts; the bin of failures is shown and not ranked.

    Failing on purpose is harder than by accident: bin 0 is not a reward that can be asked for.
    """
    generator = ctx.generator(model_dir)
    curve = []
    figures: dict[str, Any] = {}
    for number, label in enumerate(labels):
        judged = ctx.evaluate(generator, *key, "asked", number, asked=asked_for(ctx, ctx.heldout_prompts, label))
        rewards = [mean([s.reward for s in g if s.scorable]) for g in groups(judged.scored)]
        curve.append({"asked": number, "label": label, "obtained": mean(rewards), "ci95": list(bootstrap_ci95(rewards)),
                      "n": len(judged.scored), "accuracy": judged.figures["heldout_accuracy"],
                      "target": target(number, edges)})  # fmt: skip
        figures = judged.figures  # the last is the best bin's
        top = judged.scored
    bare = ctx.evaluate(generator, *key, "unasked").figures
    solvable = curve[1:]
    console.show_table(curve, ["asked", "obtained", "accuracy", "n"])
    console.show_samples(top)
    return {
        **describe_groups(groups(top), k=ctx.cfg.evaluation.k),
        "control_curve": curve,
        "failing_bin": curve[0],
        "spearman_of_bin_means": spearman([c["asked"] for c in solvable], [c["obtained"] for c in solvable]),
        "overall_reward": mean([c["obtained"] for c in solvable]),
        "top_bin_accuracy": figures["heldout_accuracy"],
        "unconditioned_accuracy": bare["heldout_accuracy"],
        "unconditioned_reward": bare["heldout_reward"],
        "edges": list(edges),
        "labels": list(labels),
    }


def target(number: int, edges: Sequence[float]) -> list[float | None]:
    """The bin's own bounds; None where it is open."""
    return [edges[number - 1] if number else None, edges[number] if number < len(edges) else None]
