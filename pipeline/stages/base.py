"""base: the model every stage starts from. A tiny one is created here; any other is loaded, saved and evaluated."""

from __future__ import annotations

from typing import Any

from pipeline.models import models
from pipeline.stages.context import Context


def run(ctx: Context) -> dict[str, Any]:
    cfg = ctx.cfg
    tiny = ctx.block.tiny or cfg.model.tiny
    if tiny is not None:
        models.make_tiny(tiny, ctx.dir.model_dir, seed=cfg.seed)
    else:
        ctx.policy_path = ctx.model_path("model", "model.path")
        models.save(models.load_policy(ctx.policy_path, cfg.model), ctx.tokenizer, ctx.dir.model_dir)
    ctx.policy_path = str(ctx.dir.model_dir)
    return ctx.evaluate(ctx.generator()).figures
