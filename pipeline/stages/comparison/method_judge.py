"""judge: evaluate every method of a comparison on the same held-out prompts with the same seeds, and report its cost.

In addition to `evaluate`: condition-trained models are evaluated under the best label, controls inside a stage are
evaluated too, the KL from the common start is measured, and a learned reward (the proxy) scores the same samples as the
verifier (gold).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.load import Config, ConfigError
from pipeline.models import models
from pipeline.records import Prompt, Scored, groups
from pipeline.run import console
from pipeline.run.files import read_jsonl
from pipeline.run.manifest import read_manifest
from pipeline.run.stage_dir import StageDir
from pipeline.score import score
from pipeline.stages.conditioned import asked_for
from pipeline.stages.context import Context
from pipeline.stages.kl_to_start import kl_from
from pipeline.stages.sampling import restored
from pipeline.stats import best_of, best_of_kl, counted, mean, pass_at_k, pass_rate

CURVE = (1, 2, 4, 8, 16, 32, 64)  # k of pass@k, n of best-of-n


@dataclass(frozen=True, slots=True)
class JudgedPolicy:
    """A policy to judge. inside: a directory of the stage other than model/, such as a control's."""

    name: str
    stage: str
    inside: str = "model"


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    proxy = ctx.scorer_of({"proxy": {"kind": "learned", "model": block.proxy}}) if block.proxy else None
    start_path = model_of(ctx, parse(block.start))
    ctx.policy_path = str(start_path)
    prompts = [p.text for p in ctx.heldout_prompts]
    unlabelled = {p.index: p for p in ctx.heldout_prompts}
    rows: list[dict[str, Any]] = []
    starts: list[Scored] = []
    for candidate in [parse(name) for name in [block.start, *block.methods]]:
        model_dir = model_of(ctx, candidate)
        ctx.switch_policy(str(model_dir))
        labelled = prompts_for(ctx, candidate)
        judged = ctx.evaluate(ctx.generator(), requests=labelled, piece=candidate.name.replace("/", "-"))
        scored = judged.scored
        if proxy is not None:
            unlabelled_rows = restored(scored, labelled, ctx.heldout_prompts)
            scored = with_part(scored, "proxy", score(proxy, [s.rollout for s in unlabelled_rows]))
        ctx.record(scored, policy=candidate.name)
        starts = starts or scored
        kl = 0.0 if candidate.name == block.start else kl_from(ctx, scored, str(start_path), unlabelled=unlabelled)
        rows.append({"policy": candidate.name, **judged.figures, "kl_from_start": kl, **by_prompt(scored, prompts),
                     **({"proxy": mean([s.parts["proxy"] or 0.0 for s in scored if s.scorable])} if proxy else {}),
                     **cost(ctx.cfg, candidate, block.start)})  # fmt: skip
    console.show_table(rows, ["policy", "heldout_accuracy", "kl_from_start", "sampled_tokens", "wall_s"])
    return {"policies": rows, "prompts": prompts, "best_of": best_of_curves(starts, proxy is not None),
            "parameters": parameters(ctx)}  # fmt: skip


def parse(name: str) -> JudgedPolicy:
    """Parse `feedme` or `feedme/control`: a stage, and optionally the directory of its control."""
    stage, _, inside = name.partition("/")
    return JudgedPolicy(name, stage, inside or "model")


def model_of(ctx: Context, candidate: JudgedPolicy) -> Path:
    """The model's directory; its stage becomes a parent. Raises ConfigError if the stage has no such control."""
    path = Path(ctx.model_path(candidate.stage, f"{ctx.name}.methods"))
    directory = path if candidate.inside == "model" else path.parent / candidate.inside
    if not directory.is_dir():
        lacks = f"stage {candidate.stage!r} keeps no {candidate.inside!r}; switch its control on"
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.methods: {candidate.name!r}: {lacks}"])
    return directory


def prompts_for(ctx: Context, candidate: JudgedPolicy) -> Sequence[Prompt]:
    """The held-out prompts, preceded by the best bins' label if the model was trained on labels (no guidance)."""
    manifest = read_manifest(StageDir(ctx.cfg.run_dir, candidate.stage).manifest_path) or {}
    label = manifest.get("metrics", {}).get("best_label")
    return asked_for(ctx, ctx.heldout_prompts, label) if label else ctx.heldout_prompts


def with_part(scored: Sequence[Scored], name: str, judged: Sequence[Scored]) -> list[Scored]:
    return [replace(s, parts={**s.parts, name: j.reward}) for s, j in zip(scored, judged, strict=True)]


def by_prompt(scored: Sequence[Scored], prompts: Sequence[str]) -> dict[str, list[float]]:
    """One value per prompt, in the order of `prompts`, for paired statistics; pass@k for every k the samples allow."""
    found = {g[0].rollout.prompt.text: counted(g) for g in groups(scored)}
    right = [[float(s.status == "pass") for s in found[p]] for p in prompts]
    seen = [r for r in right if r]  # a prompt without a scorable sample has no value: NaN below
    least = min(map(len, seen), default=0)
    curve = [mean([pass_at_k(len(r), int(sum(r)), k) for r in seen]) for k in CURVE if k <= least]
    return {"accuracy_by_prompt": [round(pass_rate(found[p]), 6) for p in prompts],
            "reward_by_prompt": [round(mean([s.reward for s in found[p]]), 6) for p in prompts],
            "pass_at": curve}  # fmt: skip


def best_of_curves(scored: Sequence[Scored], proxy: bool) -> dict[str, list[dict[str, Any]]]:
    """Best-of-n of the start's samples, chosen by the run's rewards, and by the proxy if there is one."""
    usable = [counted(g) for g in groups(scored)]
    least = min((len(g) for g in usable if g), default=0)
    sizes = [n for n in CURVE if n <= least]
    judges = {"gold": lambda s: s.reward, **({"proxy": lambda s: s.parts["proxy"] or 0.0} if proxy else {})}
    return {name: [best_of_row(usable, n, judge) for n in sizes] for name, judge in judges.items()}


def best_of_row(usable: Sequence[Sequence[Scored]], n: int, judge: Any) -> dict[str, Any]:
    """accuracy_by_prompt: NaN for a prompt without a scorable sample; means exclude it."""
    seen = [g for g in usable if g]
    picked = [[judge(s) for s in g] for g in seen]
    gold = [best_of(p, [s.reward for s in g], n) for p, g in zip(picked, seen, strict=True)]
    right = [best_of([judge(s) for s in g], [float(s.status == "pass") for s in g], n) if g else math.nan
             for g in usable]  # fmt: skip
    return {
        "n": n,
        "kl": best_of_kl(n),
        "reward": mean(gold),
        "judged": mean([best_of(p, p, n) for p in picked]),
        "accuracy_by_prompt": [round(x, 6) for x in right],
    }


# --- cost -------------------------------------------------------------------------------------------------------


def cost(cfg: Config, candidate: JudgedPolicy, start: str) -> dict[str, Any]:
    """Sampled tokens, trained tokens and seconds of all stages between the start and the method."""
    spent = {"sampled_tokens": 0, "learned_tokens": 0, "wall_s": 0.0, "forward_tokens": 0}
    for name in lineage(cfg, candidate.stage, start):
        manifest = read_manifest(StageDir(cfg.run_dir, name).manifest_path) or {}
        learned = learned_tokens(cfg, name, manifest)
        sampled = manifest.get("tokens", {})
        spent["sampled_tokens"] += sampled.get("completion", 0)
        spent["forward_tokens"] += sum(sampled.values())
        spent["learned_tokens"] += learned
        spent["wall_s"] += manifest.get("wall_s", 0.0)
    return spent


def lineage(cfg: Config, stage: str, start: str) -> list[str]:
    """The stage and its ancestors within the run, up to but excluding the start."""
    if stage == start:
        return []
    manifest = read_manifest(StageDir(cfg.run_dir, stage).manifest_path) or {}
    out = [stage]
    for parent in manifest.get("parents", {}):
        out += [name for name in lineage(cfg, parent, start) if name not in out]
    return out


def learned_tokens(cfg: Config, name: str, manifest: Mapping[str, Any]) -> int:
    """Tokens that went through a backward pass, counted once per pass; the stage's own controls are excluded."""
    figures = manifest.get("metrics", {})
    noted = [r.get("train_tokens", 0) for r in figures.get("rounds") or [figures]]
    if sum(noted):
        return int(sum(noted))
    log = StageDir(cfg.run_dir, name).path / "metrics.jsonl"
    seen: dict[str, int] = {}
    for row in read_jsonl(log) if log.is_file() else []:
        part = str(row.get("part", ""))
        if "num_input_tokens_seen" in row and not part.startswith(("control", "shuffled")):
            seen[part] = max(seen.get(part, 0), int(row["num_input_tokens_seen"]))
    if seen:
        return sum(seen.values())
    epochs = manifest.get("config", {}).get("stage", {}).get("epochs", 0)  # of a policy loop
    return int(sum(manifest.get("tokens", {}).values()) * epochs)


def parameters(ctx: Context) -> int:
    return sum(p.numel() for p in models.load_policy(ctx.policy_path, ctx.cfg.model).parameters())
