"""Dependencies between stages, and the ordinary runs that make up a comparison. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import rewards
from pipeline.config.load import Config, ConfigError, nearest
from pipeline.config.schema import KINDS, Judge, Policy

JUDGE = "judge"
RUNS_OTHERS = ("compare", "time_to_target")  # kinds whose parts are runs of their own, one per seed
ONE_PLACE = ("vllm_server", "ray")  # backends whose weights go to one location: a second writer would mix them up

# --- references of a stage ----------------------------------------------------------------------------------------


def references(cfg: Config, name: str) -> list[tuple[str, str]]:
    """(key, reference) for the policy, start, teacher, evaluated policies and learned rewards of a stage.

    Keys of the run's rewards begin with `rewards.`; all others belong to the stage's block.
    """
    block = cfg.blocks[name]
    if block.kind in RUNS_OTHERS:
        return []
    out = [(key, getattr(block, key)) for key in ("policy", "init") if isinstance(getattr(block, key, None), str)]
    out += [("policies", policy) for policy in getattr(block, "policies", None) or []]
    teacher = getattr(block, "teacher", None)
    out += [("teacher.model", teacher.model)] if teacher is not None and teacher.model else []
    out += learned_parts("reward", getattr(block, "reward", None) or {})
    out += learned_parts("monitor.strict", strict_of(block))
    return out + (learned_parts("rewards", cfg.rewards) if scores_by_the_run(block) else [])


def learned_parts(where: str, parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, model) for the parts of a `rewards:` block that are reward models."""
    return [(f"{where}.{part}", model) for part, model in rewards.learned_models(parts).items()]


def reward_dirs(cfg: Config) -> list[str]:
    """Where files of reward functions and graders are looked for: beside the YAML, then in verifier_dirs."""
    return [os.path.dirname(cfg.path) or ".", *cfg.verifier_dirs]


def scores_by_the_run(block: Any) -> bool:
    """Whether the stage scores samples with the run's rewards; every stage that evaluates on held-out prompts does."""
    on_pairs_alone = block.kind == "reward_model" and block.data is not None
    return KINDS[block.kind].scores_by_run_rewards and not on_pairs_alone


def strict_of(block: Any) -> Mapping[str, Any]:
    """The rewards that a stage's monitor scores with, if the YAML sets them."""
    return getattr(getattr(block, "monitor", None), "strict", None) or {}


def parents(cfg: Config, name: str) -> list[str]:
    """The stages of this YAML that a stage starts from, is scored with, or takes scored samples from."""
    named = [reference.partition("/")[0] for _, reference in references(cfg, name)]
    named += getattr(cfg.blocks[name], "pool", None) or []
    return [stage for stage in dict.fromkeys(named) if stage in cfg.blocks]


def ancestors(cfg: Config, name: str) -> list[str]:
    """The stages that a stage needs, parents first, without itself. Cycles are broken; `preflight` reports them."""
    out: list[str] = []
    open_: set[str] = set()

    def visit(stage: str) -> None:
        open_.add(stage)
        for parent in parents(cfg, stage):
            if parent not in open_:
                visit(parent)
                out.append(parent)

    visit(name)
    return out


# --- parts of a comparison ----------------------------------------------------------------------------------------


def policies_of(block: Any) -> dict[str, str]:
    """Every policy to evaluate -> its role, methods first. A control named twice keeps its first role."""
    out = {block.start: "start"} | dict.fromkeys(block.methods, "method")
    for method, control in block.controls.items():
        out.setdefault(control, f"control of {method}")
    for method, twin in block.drawn_once.items():
        out.setdefault(twin, f"{method}, drawn once")
    return out


def check(cfg: Config, name: str) -> None:
    """Raise ConfigError for names that the YAML uses but does not define, and for contradictory settings."""
    block = cfg.block(name)
    mistakes = []
    needed = [*policies_of(block), *(block.proxy_methods or []), *([block.proxy] if block.proxy else [])]
    for policy in needed:
        stage = policy.partition("/")[0]
        if stage not in cfg.blocks:
            mistakes.append(f"{cfg.path}: {name}: no block for {stage!r}{nearest(stage, cfg.blocks)}")
    if "/" in block.start:
        mistakes.append(f"{cfg.path}: {name}.start: {block.start!r} lies inside a stage; name a stage")
    for field in ("controls", "drawn_once"):
        for method in getattr(block, field):
            if method not in block.methods:
                mistakes.append(f"{cfg.path}: {name}.{field}: {method!r} is not among the methods"
                                f"{nearest(method, block.methods)}")  # fmt: skip
    if block.proxy_methods and not block.proxy:
        mistakes.append(f"{cfg.path}: {name}.proxy: name the reward model that {block.proxy_methods[0]} learns from")
    mistakes += [f"{cfg.path}: {name}.{field}: name at least one"
                 for field in ("methods", "seeds") if not getattr(block, field)]  # fmt: skip
    if cfg.generate.backend in ONE_PLACE and (block.workers or 1) > 1:
        mistakes.append(f"{cfg.path}: {name}.workers: {block.workers} processes would send their weights to one place, "
                        f"for generate.backend is {cfg.generate.backend}; leave workers out")  # fmt: skip
    if len(set(block.seeds)) != len(block.seeds):
        mistakes.append(f"{cfg.path}: {name}.seeds: {block.seeds} names a seed twice")
    if mistakes:
        raise ConfigError(mistakes)


def at_once(cfg: Config, name: str) -> int:
    """How many parts of a comparison run in parallel: by default one per core, at most 4."""
    if cfg.generate.backend in ONE_PLACE:
        return 1  # else a part could sample from another part's weights
    return cfg.block(name).workers or min(os.cpu_count() or 1, 4)


def start_config(cfg: Config, name: str) -> Config:
    """The ordinary run up to the model that all methods start from."""
    start = cfg.block(name).start
    return replace(cfg, run=f"{cfg.run}/start", stages=[*ancestors(cfg, start), start])


def seed_config(cfg: Config, name: str, number: int) -> Config:
    """The ordinary run of one seed: the methods and their ancestors, then their evaluation.

    The proxy's part runs only with the first seed. Blocks that accept a token budget and set none get the comparison's.
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


def runs_of(cfg: Config, name: str) -> list[Config]:
    """The ordinary runs that make up a comparison: the start, then one per seed."""
    seeds = range(len(cfg.block(name).seeds))
    return [start_config(cfg, name), *(seed_config(cfg, name, number) for number in seeds)]


def stages_of(cfg: Config, name: str) -> list[str]:
    """All stages of a comparison or of time_to_target, parents first, as one chain: the first seed runs all of them."""
    if cfg.block(name).kind == "time_to_target":
        return [stage for part in target_runs(cfg, name)[:2] for stage in part.stages]
    start, first = start_config(cfg, name), seed_config(cfg, name, 0)
    return [*start.stages, *(stage for stage in first.stages if stage != JUDGE)]


def budgeted(block: Any, budget: int) -> Any:
    open_budget = getattr(block, "token_budget", 0) is None
    return replace(block, token_budget=budget) if open_budget else block


# --- parts of time_to_target ---------------------------------------------------------------------------------------


def target_check(cfg: Config, name: str) -> None:
    """Raise ConfigError for methods that are no policy stage of the YAML, and for seeds named twice."""
    block, key = cfg.block(name), f"{cfg.path}: {name}"
    mistakes = [f"{key}: no block for {stage!r}{nearest(stage, cfg.blocks)}"
                for stage in [block.start, *block.methods, *block.slow_runs] if stage not in cfg.blocks]  # fmt: skip
    mistakes += [f"{key}.methods: {stage!r} is no policy-optimisation stage, whose steps could be followed"
                 for stage in [*block.methods, *block.slow_runs]
                 if stage in cfg.blocks and not isinstance(cfg.blocks[stage], Policy)]  # fmt: skip
    mistakes += [f"{key}.{field}: name at least one" for field in ("methods", "seeds") if not getattr(block, field)]
    if len(set(block.seeds)) != len(block.seeds):
        mistakes.append(f"{key}.seeds: {block.seeds} names a seed twice")
    if block.start in cfg.blocks and not KINDS[cfg.blocks[block.start].kind].makes_policy:
        mistakes.append(f"{key}.start: {block.start!r} leaves no policy to start from")
    if mistakes:
        raise ConfigError(mistakes)


def target_runs(cfg: Config, name: str) -> list[Config]:
    """The ordinary runs: that of the start, then one per seed."""
    block = cfg.block(name)
    before = [*ancestors(cfg, block.start), block.start]
    methods = list(dict.fromkeys([*block.methods, *block.slow_runs]))
    blocks = {stage: cfg.blocks[stage] for stage in [*before, *methods]}
    own = all(stage in cfg.stages for stage in before)  # the run itself has the start
    start = replace(cfg, run=cfg.run if own else f"{cfg.run}/start", stages=before, blocks=blocks)
    seeds = [replace(start, run=f"{cfg.run}/seed-{s}", seed=s, stages=methods) for s in block.seeds]
    return [start, *seeds]
