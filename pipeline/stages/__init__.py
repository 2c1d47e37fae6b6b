"""The stages, one readable file each, and the chain that runs them in the order of the YAML.

Each stage module has `run(ctx) -> metrics`. It reads from its parents, leaves its model in ctx.dir.model_dir, and the
chain writes the manifest when it returns.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pipeline import console, runs
from pipeline.config import Config, ConfigError
from pipeline.runs import StageDir, manifest_sha
from pipeline.stages.context import Context

MODULES = {
    "base": "base",
    "sft": "sft",
    "feedme": "feedme",
    "reward_model": "reward_model",
    "ppo": "ppo",
    "grpo": "grpo",
    "conditioned": "conditioned",
    "evaluate": "evaluate",
}
HEADLINE = ("heldout_accuracy", "pass_at_4", "mean_completion_tokens", "distinct_answers", "entropy")


def run_stage(cfg: Config, name: str) -> dict[str, Any]:
    """Run one stage to its manifest, resuming it where it was killed. Parents must be complete."""
    block = cfg.block(name)
    module = importlib.import_module(f"pipeline.stages.{MODULES[block.kind]}")
    ctx = Context(cfg, name, StageDir(cfg.run_dir, name))
    console.say(f"── {name} ({cfg.run}, seed {cfg.seed})")
    ctx.dir.open()
    metrics = module.run(ctx)
    manifest = ctx.dir.complete(
        config=stage_config(cfg, name),
        seed=cfg.seed,
        parents=ctx.parents,
        inputs=ctx.inputs,
        metrics=metrics,
        tokens=ctx.tokens,
        code=runs.code_sha(),
    )
    summary = {k: metrics[k] for k in HEADLINE if k in metrics}
    if summary:
        console.show_table([summary], list(summary))
    console.say(f"── {name} done in {console.clock(manifest['wall_s'])}: {ctx.dir.place}")
    return manifest


def stage_config(cfg: Config, name: str) -> dict[str, Any]:
    """All of the config that this stage's result depends on."""
    shared = ("model", "prompts", "rewards", "generate", "sampling", "evaluation", "verifier_dirs", "threads")
    return {"seed": cfg.seed, "stage": cfg.block(name), **{key: getattr(cfg, key) for key in shared}}


def stale(cfg: Config, name: str) -> str | None:
    """Why a stage must run, in words; None where what is on disk is what the config asks for."""
    stage = StageDir(cfg.run_dir, name)
    manifest = stage.manifest()
    if manifest is None:
        return "interrupted" if stage.checkpoints.is_dir() else "not yet run"
    want = runs.sha256_json(stage_config(cfg, name))
    if runs.sha256_json(manifest["config"]) != want:
        return "its config changed"
    if manifest.get("code") != runs.code_sha():
        return "the code changed"
    for parent, sha in manifest["parents"].items():
        made = StageDir(cfg.run_dir, parent).manifest()
        if made is None or manifest_sha(made) != sha:
            return f"its parent {parent} changed"
    changed = _changed_input(manifest["inputs"])
    return f"its input {changed} changed" if changed else None


def _changed_input(inputs: Mapping[str, str]) -> str | None:
    from pathlib import Path

    for path, sha in inputs.items():
        if not Path(path).is_file() or runs.sha256_file(Path(path)) != sha:
            return path
    return None


def run_all(cfg: Config) -> None:
    """Every stage the YAML names, in its order; what is complete and unchanged is skipped."""
    if not cfg.stages:
        raise ConfigError([f"{cfg.path}: stages: name at least one stage to run"])
    for name in cfg.stages:
        why = stale(cfg, name)
        if why is None:
            console.say(f"── {name}: up to date")
            continue
        console.say(f"── {name}: {why}")
        if why not in ("interrupted", "not yet run"):
            StageDir(cfg.run_dir, name).wipe()
        run_stage(cfg, name)
