"""evaluate: every policy of the run on the same held-out prompts with the same seeds, side by side."""

from __future__ import annotations

from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.registry import policies_before
from pipeline.run import console
from pipeline.run.manifest import read_manifest
from pipeline.stages.context import Context
from pipeline.stats import headline_names


def run(ctx: Context) -> dict[str, Any]:
    names = ctx.block.policies or policies_before(ctx.cfg, ctx.name)
    if not names:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.policies: no policy stage comes before this one; name some"])
    rows = []
    for name in names:
        ctx.turn_to(ctx.model_path(name, f"{ctx.name}.policies"))
        judged = ctx.evaluate(ctx.generator(), piece=name)
        ctx.record(judged.scored, policy=name)
        rows.append({"policy": name, **judged.figures, **training_cost(ctx, name)})
    console.show_table(rows, ["policy", *headline_names(rows)])
    best = max(rows, key=lambda row: row["heldout_accuracy"])
    return {**{k: v for k, v in best.items() if k != "policy"}, "best_policy": best["policy"], "policies": rows}


def training_cost(ctx: Context, name: str) -> dict[str, Any]:
    manifest = read_manifest(ctx.cfg.run_dir / name / "manifest.json") if name in ctx.cfg.blocks else None
    return {"sampled_tokens": manifest["tokens"]["completion"], "wall_s": manifest["wall_s"]} if manifest else {}
