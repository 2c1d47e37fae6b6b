"""compare: the methods a YAML names, from one model, at one budget of sampled tokens, over seeds, with controls.

Every part is an ordinary stage in an ordinary run below this one, so what is complete is never run twice:

    runs/NAME/start/      up to the model all methods start from; made once
    runs/NAME/seed-1/     the methods under seed 1, and `judge`, which holds them all against the same prompts
    runs/NAME/compare/    manifest.json: the table, the traits and the sentences (`pipeline.stages.findings`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import console
from pipeline.config import Config, ConfigError, nearest
from pipeline.runs import StageDir, atomic_write, read_jsonl, verify_outputs
from pipeline.schema import Judge
from pipeline.stages import findings
from pipeline.stages.context import Context
from pipeline.stages.workers import Part, run_parts

JUDGE = "judge"


def run(ctx: Context) -> dict[str, Any]:
    cfg, block = ctx.cfg, ctx.block
    check(cfg, ctx.name)
    start = replace(cfg, run=f"{cfg.run}/start", stages=[*ancestors(cfg, block.start), block.start])
    seeds = [seed_config(cfg, ctx.name, number) for number in range(len(block.seeds))]
    run_parts(parts_of(start, seeds), workers=block.workers, logs=ctx.dir.place / "logs")
    manifests = [verify_outputs(StageDir(c.run_dir, JUDGE)) for c in seeds]
    ctx.depend_on(*(StageDir(c.run_dir, JUDGE).manifest_path for c in seeds))
    figures = conclude(block, [m["metrics"] for m in manifests], seeds)
    columns = ["method", "role", "accuracy", "kl_from_start", "sampled_tokens", "wall_s"]
    console.show_table(figures["table"], columns)
    atomic_write(ctx.dir.place / "table.md", findings.markdown(figures["table"], block.start))
    for line in figures["sentences"]:
        console.say(f"  {line}")
    return {**figures, "runs": [Path(c.run).name for c in seeds], "seeds": list(block.seeds), "budget": block.budget}


def policies_of(block: Any) -> dict[str, str]:
    """Every policy to judge -> its role; the methods first. A control named twice keeps its first role."""
    out = {block.start: "start"} | dict.fromkeys(block.methods, "method")
    for method, control in block.controls.items():
        out.setdefault(control, f"control of {method}")
    for method, twin in block.drawn_once.items():
        out.setdefault(twin, f"{method}, drawn once")
    return out


def check(cfg: Config, name: str) -> None:
    """Raises ConfigError for what the YAML names and does not define."""
    block = cfg.block(name)
    mistakes = []
    asked = [*policies_of(block), *(block.proxy_methods or []), *([block.proxy] if block.proxy else [])]
    for policy in asked:
        stage = policy.partition("/")[0]
        if stage not in cfg.blocks:
            mistakes.append(f"{cfg.path}: {name}: no block for {stage!r}{nearest(stage, cfg.blocks)}")
    for field in ("controls", "drawn_once"):
        for method in getattr(block, field):
            if method not in block.methods:
                mistakes.append(f"{cfg.path}: {name}.{field}: {method!r} is not among the methods"
                                f"{nearest(method, block.methods)}")  # fmt: skip
    if block.proxy_methods and not block.proxy:
        mistakes.append(f"{cfg.path}: {name}.proxy: name the reward model that {block.proxy_methods[0]} learns from")
    if len(set(block.seeds)) != len(block.seeds):
        mistakes.append(f"{cfg.path}: {name}.seeds: {block.seeds} names a seed twice")
    if mistakes:
        raise ConfigError(mistakes)


# --- what runs, and after what ----------------------------------------------------------------------------------


def references(block: Any) -> list[str]:
    """What a stage's block refers to as its policy, reward model or start, stages or not."""
    out = [getattr(block, name) for name in ("policy", "init", "start_from") if getattr(block, name, None)]
    for name, part in (getattr(block, "reward", None) or {}).items():
        out.append((part or {}).get("model", name))
    return [str(r) for r in out]


def ancestors(cfg: Config, name: str) -> list[str]:
    """The stages a stage needs, parents first, itself left out."""
    out: list[str] = []
    for parent in references(cfg.blocks[name]):
        if parent in cfg.blocks and parent not in out:
            out += [a for a in ancestors(cfg, parent) if a not in out] + [parent]
    return out


def seed_config(cfg: Config, name: str, number: int) -> Config:
    """The ordinary run of one seed: the methods and what they need, then their judge.

    The proxy's part runs under the first seed only. Blocks that may spend the budget and set none of their own get it.
    """
    block = cfg.block(name)
    policies = [p for p in policies_of(block) if p != block.start]
    proxied = list(block.proxy_methods) if number == 0 else []
    wanted = [p.partition("/")[0] for p in [*policies, *proxied]] + (
        [block.proxy] if block.proxy and number == 0 else []
    )
    before = {*ancestors(cfg, block.start), block.start}
    stages: list[str] = []
    for stage in wanted:
        stages += [s for s in [*ancestors(cfg, stage), stage] if s not in stages and s not in before]
    blocks = {k: budgeted(v, block.budget) for k, v in cfg.blocks.items() if k in stages or k in before}
    blocks[JUDGE] = Judge(start=block.start, methods=[*policies, *proxied], proxy=block.proxy if number == 0 else None)
    seed = block.seeds[number]
    return replace(cfg, run=f"{cfg.run}/seed-{seed}", seed=seed, stages=[*stages, JUDGE], blocks=blocks)


def budgeted(block: Any, budget: int) -> Any:
    open_budget = getattr(block, "token_budget", 0) is None
    return replace(block, token_budget=budget) if open_budget else block


def parts_of(start: Config, seeds: Sequence[Config]) -> list[Part]:
    """Every stage to run, with the parts it waits for. The start's stages appear in each seed's run by a link."""
    first = [Part(start, name, after=[(start.run, n) for n in start.stages[:i]]) for i, name in enumerate(start.stages)]
    out = list(first)
    for cfg in seeds:
        link_start(start, cfg)
        for name in cfg.stages:
            needed = [n for n in cfg.stages if n != JUDGE] if name == JUDGE else ancestors(cfg, name)
            made_before = [(start.run, n) for n in start.stages]
            out.append(Part(cfg, name, after=[*made_before, *((cfg.run, n) for n in needed if n in cfg.stages)]))
    return out


def link_start(start: Config, cfg: Config) -> None:
    """The start's stages as stages of this run: one copy on disk, one lineage to follow."""
    cfg.run_dir.mkdir(parents=True, exist_ok=True)
    for name in start.stages:
        link = cfg.run_dir / name
        if not link.is_symlink():
            link.symlink_to(Path("..") / Path(start.run).name / name, target_is_directory=True)


# --- what it amounts to -----------------------------------------------------------------------------------------


def conclude(block: Any, judged: Sequence[Mapping[str, Any]], seeds: Sequence[Config]) -> dict[str, Any]:
    """The table, the traits, the sentences and the paths of all plots, from what the judges found."""
    roles = policies_of(block)
    rows = findings.table(judged, roles, block.start, block.budget)
    among = findings.pairs(judged, block.methods)
    controls = findings.against(judged, block.controls)
    once = findings.against(judged, block.drawn_once)
    said = [findings.sentence(r, among, controls, once, start=block.start, seeds=len(judged))
            for r in rows if r["role"] == "method"]  # fmt: skip
    paths = {name: [path_of(cfg, name) for cfg in seeds] for name, role in roles.items() if role != "start"}
    out = {"table": rows + findings.best_of_rows(judged, block.best_of, block.start), "pairs": among,
           "controls": controls, "online": once, "sentences": said, "paths": paths, "start": block.start,
           "start_pass_at": rows[0]["pass_at"], "best_of": judged[0]["best_of"]["gold"]}  # fmt: skip
    return out | ({"proxy": proxy_part(block, judged[0], seeds[0])} if block.proxy else {})


def path_of(cfg: Config, policy: str) -> list[dict[str, float]]:
    """The looks along the way of one policy under one seed; of a control inside a stage, its rounds."""
    stage, _, inside = policy.partition("/")
    place = StageDir(cfg.run_dir, stage)
    metrics = (place.manifest() or {}).get("metrics", {})
    log = place.place / "metrics.jsonl"
    rounds = metrics.get("random_control_rounds" if inside else "rounds") or []
    return findings.trajectory([] if inside or not log.is_file() else list(read_jsonl(log)), rounds)


def proxy_part(block: Any, judged: Mapping[str, Any], cfg: Config) -> dict[str, Any]:
    """The learned reward against the true one along the KL, for best-of-n and the methods that learned from it."""
    sampled = next(r for r in judged["policies"] if r["policy"] == block.start)
    origin = {"kl": 0.0, "proxy": sampled["proxy"], "reward": sampled["heldout_reward"], "tokens": 0.0}
    picked = [
        {"kl": b["kl"], "proxy": b["judged"], "reward": b["reward"], "n": b["n"]} for b in judged["best_of"]["proxy"]
    ]
    paths = {f"best of n, from {block.start}": picked}
    ends = {r["policy"]: {"kl": r["kl_from_start"], "proxy": r["proxy"], "reward": r["heldout_reward"]}
            for r in judged["policies"]}  # fmt: skip
    paths |= {name: [origin, *path_of(cfg, name), ends[name]] for name in block.proxy_methods}
    pair = (StageDir(cfg.run_dir, block.proxy).manifest() or {}).get("metrics", {})
    return {"model": block.proxy, "pair_accuracy": pair.get("heldout_pair_accuracy"), "pairs": pair.get("pairs"),
            "paths": paths, "findings": [findings.overoptimised(n, p) for n, p in paths.items()],
            "seed": block.seeds[0]}  # fmt: skip
