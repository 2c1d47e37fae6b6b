"""Which stages a stage needs, and the ordinary runs that a comparison is made of. Nothing heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import rewards
from pipeline.config.load import Config, ConfigError, nearest
from pipeline.config.schema import KINDS, Judge

JUDGE = "judge"
ONE_PLACE = ("vllm_server", "ray")  # backends whose weights pass through one place: a second writer would mix them

# --- what a stage refers to ---------------------------------------------------------------------------------------


def references(cfg: Config, name: str) -> list[tuple[str, str]]:
    """(key, what it names) for the policy, start, judged policies and learned rewards of a stage.

    Keys of the run's own rewards begin with `rewards.`, all others are of the stage's block.
    """
    block = cfg.blocks[name]
    if block.kind == "compare":
        return []
    out = [(key, getattr(block, key)) for key in ("policy", "init") if isinstance(getattr(block, key, None), str)]
    out += [("policies", policy) for policy in getattr(block, "policies", None) or []]
    out += learned_parts("reward", getattr(block, "reward", None) or {})
    out += learned_parts("monitor.strict", strict_of(block))
    return out + (learned_parts("rewards", cfg.rewards) if scores_by_the_run(block) else [])


def learned_parts(where: str, parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, model) of the parts of a `rewards:` block that are reward models."""
    return [(f"{where}.{part}", model) for part, model in rewards.learned_models(parts).items()]


def scores_by_the_run(block: Any) -> bool:
    """Whether the stage scores samples by the run's rewards; all that judge on the held-out prompts do."""
    on_pairs_alone = block.kind == "reward_model" and block.data is not None
    return KINDS[block.kind].scores_by_run_rewards and not on_pairs_alone


def strict_of(block: Any) -> Mapping[str, Any]:
    """What a stage's monitor scores by, where the YAML says so."""
    return getattr(getattr(block, "monitor", None), "strict", None) or {}


def parents(cfg: Config, name: str) -> list[str]:
    """The stages of this YAML that a stage starts from, is scored by, or takes scored samples from."""
    named = [reference.partition("/")[0] for _, reference in references(cfg, name)]
    named += getattr(cfg.blocks[name], "pool", None) or []
    return [stage for stage in dict.fromkeys(named) if stage in cfg.blocks]


def ancestors(cfg: Config, name: str) -> list[str]:
    """The stages a stage needs, parents first, itself left out. A circle is cut; `preflight` tells of it."""
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


# --- what a comparison is made of ---------------------------------------------------------------------------------


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
    """How many parts of a comparison run beside each other: a core each by default, at most 4."""
    if cfg.generate.backend in ONE_PLACE:
        return 1  # another's weights would answer
    return cfg.block(name).workers or min(os.cpu_count() or 1, 4)


def start_config(cfg: Config, name: str) -> Config:
    """The ordinary run up to the model all methods start from."""
    start = cfg.block(name).start
    return replace(cfg, run=f"{cfg.run}/start", stages=[*ancestors(cfg, start), start])


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


def runs_of(cfg: Config, name: str) -> list[Config]:
    """The ordinary runs a comparison is made of: the start, then one a seed."""
    seeds = range(len(cfg.block(name).seeds))
    return [start_config(cfg, name), *(seed_config(cfg, name, number) for number in seeds)]


def stages_of(cfg: Config, name: str) -> list[str]:
    """All stages of a comparison, parents first, as one chain; the first seed runs every one of them."""
    start, first = start_config(cfg, name), seed_config(cfg, name, 0)
    return [*start.stages, *(stage for stage in first.stages if stage != JUDGE)]


def budgeted(block: Any, budget: int) -> Any:
    open_budget = getattr(block, "token_budget", 0) is None
    return replace(block, token_budget=budget) if open_budget else block
