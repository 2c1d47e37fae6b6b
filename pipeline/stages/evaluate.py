"""evaluate: compare every policy of the run on the same held-out prompts with the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.registry import policies_before
from pipeline.run import console
from pipeline.run.manifest import read_manifest
from pipeline.stages.context import Context
from pipeline.stats import headline_names, is_judged


def run(ctx: Context) -> dict[str, Any]:
    names = ctx.block.policies or policies_before(ctx.cfg, ctx.name)
    if not names:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.policies: no policy stage comes before this one; name some"])
    rows = []
    for name in names:
        ctx.switch_policy(ctx.model_path(name, f"{ctx.name}.policies"))
        judged = ctx.evaluate(ctx.generator(), piece=name)
        ctx.record(judged.scored, policy=name)
        rows.append({"policy": name, **judged.figures, **of_its_stage(ctx, name)})
    console.show_table(rows, columns_of(rows))
    if any("stage_accuracy" in row for row in rows):
        console.say("  heldout_accuracy: sampled with the same seeds for every policy; stage_accuracy: reported by the "
                    "stage itself, from samples with its own seeds")  # fmt: skip
    show_tie(rows)
    best = max(enumerate(rows), key=lambda numbered: (main_figure(numbered[1]), numbered[0]))[1]  # of equals the last
    return {**{k: v for k, v in best.items() if k != "policy"}, "best_policy": best["policy"], "policies": rows}


def show_tie(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line if several policies have the best figure."""
    figures = [main_figure(row) for row in rows]
    *others, last = [row["policy"] for row, figure in zip(rows, figures, strict=True) if figure == max(figures)]
    if others:
        console.say(f"  best_policy: {last}, the last of equals: {', '.join([*others, last])}")


def main_figure(row: Mapping[str, Any]) -> float:
    """What policies are compared by: accuracy, or the mean reward where no part of the rewards says right or wrong."""
    value = row["heldout_accuracy" if is_judged(row) else "heldout_reward"]
    return -math.inf if math.isnan(value) else float(value)


def of_its_stage(ctx: Context, name: str) -> dict[str, Any]:
    """The stage's figures from its manifest: its cost, and the accuracy it reported itself."""
    manifest = read_manifest(ctx.cfg.run_dir / name / "manifest.json") if name in ctx.cfg.blocks else None
    if manifest is None:
        return {}
    metrics = manifest["metrics"]  # a conditioned stage reports accuracy under its best label; without one, as here:
    own = metrics.get("unconditioned_accuracy", metrics.get("heldout_accuracy"))
    return {"sampled_tokens": manifest["tokens"]["completion"], "wall_s": manifest["wall_s"],
            **({} if own is None or not is_judged(metrics) else {"stage_accuracy": own})}  # fmt: skip


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    first, *rest = headline_names(rows)
    own = ["stage_accuracy"] if any("stage_accuracy" in row for row in rows) else []
    return ["policy", first, *own, *rest]
