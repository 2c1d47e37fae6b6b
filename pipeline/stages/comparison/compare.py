"""compare: methods trained from one model with one budget of sampled tokens, over several seeds, with controls.

Every part is an ordinary stage in an ordinary run below this one, so a finished part is not run again:

    runs/NAME/start/      the stages up to the common starting model; run once
    runs/NAME/seed-1/     the methods under seed 1, and `judge`, which evaluates them all on the same prompts
    runs/NAME/compare/    manifest.json: table, traits and sentences (`pipeline.stages.comparison.findings`)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.load import Config
from pipeline.config.stage_graph import JUDGE, ONE_PLACE, ancestors, at_once, check, policies_of, runs_of
from pipeline.run import console
from pipeline.run.files import atomic_write, read_jsonl
from pipeline.run.manifest import verified_manifest
from pipeline.run.stage_dir import StageDir
from pipeline.stages.comparison import findings
from pipeline.stages.comparison.stage_pool import PooledStage, run_parts
from pipeline.stages.context import Context


def run(ctx: Context) -> dict[str, Any]:
    cfg, block = ctx.cfg, ctx.block
    check(cfg, ctx.name)
    start, *seeds = runs_of(cfg, ctx.name)
    workers = at_once(cfg, ctx.name)
    if cfg.generate.backend in ONE_PLACE:
        console.say(f"{ctx.name}: parts run one after another, because {cfg.generate.backend} holds one set of weights")
    run_parts(parts_of(start, seeds), workers=workers, logs=ctx.dir.path / "logs", setting=f"{ctx.name}.workers")
    manifests = [verified_manifest(c.run_dir / JUDGE) for c in seeds]
    ctx.depend_on(*(StageDir(c.run_dir, JUDGE).manifest_path for c in seeds))
    ctx.inputs |= inputs_of([start, *seeds])
    figures = conclude(block, [m["metrics"] for m in manifests], seeds)
    columns = ["method", "role", figures["measure"], "kl_from_start", "sampled_tokens", "wall_s"]
    console.show_table(figures["table"], columns)
    atomic_write(ctx.dir.path / "table.md", findings.markdown(figures["table"], block.start))
    for line in figures["sentences"]:
        console.say(f"  {line}")
    return {**figures, "runs": [Path(c.run).name for c in seeds], "seeds": list(block.seeds), "budget": block.budget}


# --- what runs, and in which order ------------------------------------------------------------------------------


def parts_of(start: Config, seeds: Sequence[Config]) -> list[PooledStage]:
    """Every stage to run, with the parts it waits for. Each seed's run links to the stages of the start."""
    first = [
        PooledStage(start, name, after=[(start.run, n) for n in start.stages[:i]])
        for i, name in enumerate(start.stages)
    ]
    out = list(first)
    for cfg in seeds:
        link_start(start, cfg)
        for name in cfg.stages:
            needed = [n for n in cfg.stages if n != JUDGE] if name == JUDGE else ancestors(cfg, name)
            made_before = [(start.run, n) for n in start.stages]
            out.append(PooledStage(cfg, name, after=[*made_before, *((cfg.run, n) for n in needed if n in cfg.stages)]))
    return out


def link_start(start: Config, cfg: Config) -> None:
    """Link the start's stages into this run: one copy on disk, one lineage to follow.

    If the comparison had another start before, dangling links are removed, and stages in the way of new links are set
    aside.
    """
    cfg.run_dir.mkdir(parents=True, exist_ok=True)
    above = Path(os.path.relpath(start.run_dir, cfg.run_dir))
    for link in cfg.run_dir.iterdir():
        if link.is_symlink() and link.readlink().parent == above and link.name not in start.stages:
            link.unlink()
    for name in start.stages:
        link = cfg.run_dir / name
        if link.is_symlink():
            continue
        if link.exists():
            console.say(f"{Path(cfg.run).name}/{name}: previous output moved to "
                        f"{StageDir(cfg.run_dir, name).set_aside()}")  # fmt: skip
        link.symlink_to(above / name, target_is_directory=True)


def inputs_of(runs: Sequence[Config]) -> dict[str, str]:
    """Path -> sha256 of everything the parts read, so that the comparison becomes stale when one of them changes."""
    made = [StageDir(cfg.run_dir, name).manifest() or {} for cfg in runs for name in cfg.stages]
    return {path: sha for manifest in made for path, sha in manifest.get("inputs", {}).items()}


# --- conclusions -----------------------------------------------------------------------------------------


def conclude(block: Any, judged: Sequence[Mapping[str, Any]], seeds: Sequence[Config]) -> dict[str, Any]:
    """Table, traits, sentences and plot data, computed from the metrics of the judge stages."""
    roles = policies_of(block)
    rows = findings.table(judged, roles, block.start, block.budget)
    among = findings.pairs(judged, block.methods)
    controls = findings.against(judged, block.controls)
    once = findings.against(judged, block.drawn_once)
    sentences = [findings.sentence(r, among, controls, once, start=block.start, seeds=len(judged))
            for r in rows if r["role"] == "method"]  # fmt: skip
    paths = {name: [path_of(cfg, name) for cfg in seeds] for name, role in roles.items() if role != "start"}
    out = {"table": rows + findings.best_of_rows(judged, block.best_of, block.start), "pairs": among,
           "controls": controls, "online": once, "sentences": sentences, "paths": paths, "start": block.start,
           "measure": findings.measure(judged), "start_pass_at": rows[0]["pass_at"],
           "best_of": judged[0]["best_of"]["gold"]}  # fmt: skip
    return out | ({"proxy": proxy_part(block, judged[0], seeds[0])} if block.proxy else {})


def path_of(cfg: Config, policy: str) -> list[dict[str, float]]:
    """The evaluation passes of one policy under one seed; the rounds if it is a control inside a stage."""
    stage, _, inside = policy.partition("/")
    directory = StageDir(cfg.run_dir, stage)
    metrics = (directory.manifest() or {}).get("metrics", {})
    log = directory.path / "metrics.jsonl"
    rounds = metrics.get("random_control_rounds" if inside else "rounds") or []
    return findings.trajectory([] if inside or not log.is_file() else list(read_jsonl(log)), rounds)


def proxy_part(block: Any, judged: Mapping[str, Any], cfg: Config) -> dict[str, Any]:
    """Learned and true reward as a function of the KL, for best-of-n and the methods trained on the learned reward."""
    sampled = next(r for r in judged["policies"] if r["policy"] == block.start)
    origin = {"kl": 0.0, "proxy": sampled["proxy"], "reward": sampled["heldout_reward"], "tokens": 0.0}
    picked = [
        {"kl": b["kl"], "proxy": b["judged"], "reward": b["reward"], "n": b["n"]} for b in judged["best_of"]["proxy"]
    ]
    paths = {f"best of n, from {block.start}": picked}
    last_points = {r["policy"]: {"kl": r["kl_from_start"], "proxy": r["proxy"], "reward": r["heldout_reward"]}
            for r in judged["policies"]}  # fmt: skip
    paths |= {name: [origin, *path_of(cfg, name), last_points[name]] for name in block.proxy_methods}
    pair = (StageDir(cfg.run_dir, block.proxy).manifest() or {}).get("metrics", {})
    return {"model": block.proxy, "pair_accuracy": pair.get("heldout_pair_accuracy"), "pairs": pair.get("pairs"),
            "paths": paths, "findings": [findings.overoptimised(n, p) for n, p in paths.items()],
            "seed": block.seeds[0]}  # fmt: skip
