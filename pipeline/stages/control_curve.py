"""What a condition-trained model obtains for each requested label: evidence for or against control."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.credit.conditioning import Axis, Conditions, calibration_error
from pipeline.data import condition_prompts
from pipeline.records import Scored, groups, merged_episodes
from pipeline.run import console
from pipeline.stages.context import Context, Judged
from pipeline.stages.kl_to_start import kl_from
from pipeline.stages.sampling import open_generator
from pipeline.stats import bootstrap_ci95, counted, mean, spearman


def judge(ctx: Context, model_dir: str, conditions: Conditions, *, start: str) -> dict[str, Any]:
    """Request every bin of every axis alone, all axes' best bins together, no label, and one bin beyond those trained.

    start: the model it was trained from, with the same vocabulary; the KL is measured from it.
    """
    axis = conditions.main
    answers = ask_all(ctx, model_dir, conditions, axis)
    curve = curve_of(axis, answers)
    apart = solvable(axis, curve)
    console.show_table(curve, ["asked", "obtained", "promised", "accuracy", "tokens", "n"])
    top = answers[axis.best]
    unlabelled = ask(ctx, model_dir, conditions, {})
    best = ask(ctx, model_dir, conditions, conditions.best) if len(conditions.axes) > 1 else top
    console.show_samples(best.scored)
    plain = {p.index: p for p in ctx.heldout_prompts}
    return {
        **best.figures,
        "heldout_kl": kl_from(ctx, best.scored, start, unlabelled=plain),
        "control_curve": curve,
        "failing_bin": curve[0] if apart is not curve else None,
        "spearman_of_bin_means": rank_correlation(apart),
        "monotone": is_monotone(apart),
        "calibration_error": calibration_error([c["obtained"] for c in apart], [c["promised"] for c in apart]),
        "overall_reward": overall(apart),
        "top_bin_accuracy": top.figures["heldout_accuracy"],
        "top_bin_accuracy_ci95": top.figures["heldout_accuracy_ci95"],
        "unconditioned_accuracy": unlabelled.figures["heldout_accuracy"],
        "unconditioned_reward": unlabelled.figures["heldout_reward"],
        "extrapolation": extrapolation(ctx, model_dir, conditions, answers, curve),
        "attribute_curves": {a.name: curve_of(a, ask_all(ctx, model_dir, conditions, a)) for a in conditions.axes[1:]},
        "joint": joint(conditions, top, best) if len(conditions.axes) > 1 else None,
        "edges": list(axis.edges),
        "best_bin": axis.best,
        "best_label": conditions.text(conditions.best),
        "labels": [axis.text(i) for i in range(axis.count)],
    }


def ask(ctx: Context, model_dir: str, conditions: Conditions, bins: Mapping[str, int], *key: str) -> Judged:
    """Held-out metrics under one label, with the stage's guidance if it has one."""
    unlabelled = ctx.heldout_prompts
    label = conditions.text(bins)
    prompts = [condition_prompts.relabel(p, label, ctx.cfg.prompts, ctx.tokenizer) for p in unlabelled]
    generator = open_generator(ctx, model_dir, prompts, unlabelled, guidance=ctx.block.guidance if label else 1.0)
    name = "-".join(f"{axis}{number}" for axis, number in bins.items()) or "nothing"
    return ctx.evaluate(generator, *key, "asked", requests=prompts, piece=name)


def top_accuracy(ctx: Context, model_dir: str, conditions: Conditions, *key: str | int) -> float:
    judged = ask(ctx, model_dir, conditions, conditions.best, *map(str, key))
    return float(judged.figures["heldout_accuracy"])


def ask_all(ctx: Context, model_dir: str, conditions: Conditions, axis: Axis, *key: str) -> list[Judged]:
    """Evaluate every bin of the axis, requested alone."""
    return [ask(ctx, model_dir, conditions, {axis.name: number}, *key) for number in range(axis.count)]


def curve_of(axis: Axis, answers: Sequence[Judged]) -> list[dict[str, Any]]:
    """One row per bin: what was requested, and what was obtained with its interval over prompts."""
    rows = []
    for number, (judged, values) in enumerate(zip(answers, obtained_of(axis, answers), strict=True)):
        obtained = list(values.values())
        rows.append({"asked": number, "label": axis.text(number), "obtained": mean(obtained),
                     "ci95": list(bootstrap_ci95(obtained)), "promised": promised(axis, number),
                     "accuracy": judged.figures["heldout_accuracy"], "tokens": judged.figures["mean_completion_tokens"],
                     "n": len(merged_episodes(judged.scored)), "target": axis.bounds(number),
                     "seen": axis.seen[number]})  # fmt: skip
    return rows


def obtained_of(axis: Axis, answers: Sequence[Judged]) -> list[dict[int, float]]:
    """Per answer, prompt -> mean of the quantity that the axis measures. For a `per_prompt` axis the prompt's mean over
    all requested bins is subtracted, because its edges and values are such differences. A prompt is left out if the
    checker broke on all of its samples."""
    usable = [[counted(group) for group in groups(merged_episodes(judged.scored))] for judged in answers]
    means = [{g[0].rollout.prompt.index: mean([measure(axis.of, s) for s in g]) for g in some if g} for some in usable]
    if not axis.per_prompt:
        return means
    usual = {i: mean([values[i] for values in means if i in values]) for values in means for i in values}
    return [{index: value - usual[index] for index, value in values.items()} for values in means]


def measure(of: str, scored: Scored) -> float:
    """An attribute's value for one sample. Raises ValueError if it names a reward part that does not exist."""
    known = {"reward": scored.reward, "correct": float(scored.status == "pass"),
             "format": float(scored.status != "malformed"), "length": float(sum(scored.rollout.mask))}  # fmt: skip
    if of in known:
        return known[of]
    value = scored.parts.get(of)
    if value is None:
        have = ", ".join([*known, *scored.parts])
        raise ValueError(f"{of!r} is no part of the rewards of every sample; have: {have}")
    return float(value)


def promised(axis: Axis, number: int) -> float:
    return axis.promised[number] if number < len(axis.promised) else math.nan


def solvable(axis: Axis, curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curve without the bin of failures, if a high reward is preferred and there are more than two bins: failing on
    purpose is harder than failing by accident, so the reward of bin 0 cannot be requested."""
    return curve[1:] if axis.of == "reward" and axis.prefer == "high" and len(curve) > 2 else curve


def overall(curve: Sequence[Mapping[str, Any]]) -> float:
    return mean([c["obtained"] for c in curve])


def rank_correlation(curve: Sequence[Mapping[str, Any]]) -> float:
    return spearman([c["asked"] for c in curve], [c["obtained"] for c in curve])


def is_monotone(curve: Sequence[Mapping[str, Any]]) -> bool:
    means = [c["obtained"] for c in curve]
    return all(low <= high for low, high in itertools.pairwise(means))  # False where a mean is NaN


def extrapolation(
    ctx: Context, model_dir: str, conditions: Conditions, answers: Sequence[Judged], curve: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The result of requesting one bin beyond the preferred end; None if such a label cannot be written."""
    axis = conditions.main
    beyond = axis.beyond
    label = axis.text(beyond)
    if condition_prompts.written(label, ctx.tokenizer) != label:
        return None
    warning = conditions.warnings({axis.name: beyond})[0]
    judged = ask(ctx, model_dir, conditions, {axis.name: beyond})
    obtained = mean(list(obtained_of(axis, [*answers, judged])[-1].values()))
    out = {"asked": beyond, "label": label, "obtained": obtained,
           "accuracy": judged.figures["heldout_accuracy"], "best_seen": curve[axis.best]["obtained"],
           "warning": warning}  # fmt: skip
    console.say(f"{ctx.name}: beyond the trained bins: {label.strip()} gave {console.number(out['obtained'])} where "
                f"{axis.text(axis.best).strip()} gives {console.number(out['best_seen'])}; {warning}")  # fmt: skip
    return out


def joint(conditions: Conditions, alone: Judged, together: Judged) -> dict[str, Any]:
    """The best bins of all axes together against the first axis's best bin alone, and what the other axes cost."""
    key, tokens = "heldout_accuracy", "mean_completion_tokens"
    return {"asked": conditions.text(conditions.best), "accuracy": together.figures[key],
            "tokens": together.figures[tokens], "alone_accuracy": alone.figures[key],
            "alone_tokens": alone.figures[tokens], "cost": alone.figures[key] - together.figures[key]}  # fmt: skip
