"""Plan of a comparison: its parts, each a stage of one of its runs, and the budget they share. Starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import stage_graph
from pipeline.config.load import Config
from pipeline.plan import one_run
from pipeline.plan.trial import Measure
from pipeline.run import console

MIB = 1 << 20


def comparison_of(cfg: Config) -> str | None:
    """The compare block of a YAML that lists no stages itself; `python -m pipeline compare` runs it."""
    named = [name for name, block in cfg.blocks.items() if block.kind == "compare"]
    return named[0] if named and not cfg.stages else None


def make(cfg: Config, name: str, measure: Measure | None) -> dict[str, one_run.Plan]:
    """Run -> its plan."""
    return {each.run: one_run.make(each, measure) for each in stage_graph.runs_of(cfg, name)}


def as_json(made: Mapping[str, one_run.Plan]) -> dict[str, Any]:
    return {run: one.as_json() for run, one in made.items()}


def show(cfg: Config, name: str, made: Mapping[str, one_run.Plan]) -> None:
    block = cfg.block(name)
    console.say(f"{cfg.path}: comparison {cfg.run}, seeds {', '.join(map(str, block.seeds))}, in {cfg.run_dir}")
    rows = [{"part": f"{run.rpartition('/')[2]}/{row['stage']}", **{k: v for k, v in row.items() if k != "stage"}}
            for run, one in made.items() for row in one_run.rows_of(one)]  # fmt: skip
    console.show_table(rows, list(rows[0]))
    sampled = sum(work.tokens for one in made.values() for work in one.works)
    console.say(f"budget: {block.budget:,} sampled tokens a method and seed, unless its block says otherwise; "
                f"{len(block.methods)} methods, {len(set(block.controls.values()) | set(block.drawn_once.values()))} "
                f"controls and twins, {len(block.seeds)} seeds: about {sampled:,} tokens in all")  # fmt: skip
    if not any(one.memory for one in made.values()):
        return
    peak = max((m.total for one in made.values() for m in one.memory.values()), default=0)
    seconds = [(s, one.stale[stage] is not None) for one in made.values() for stage, s in one.seconds.items()]
    workers = stage_graph.at_once(cfg, name)
    console.say(f"memory: {peak / MIB:,.0f} MiB a process, {workers} at once")
    console.say(f"time: {console.clock(sum(s for s, todo in seconds if todo) / workers)} for what is stale, "
                f"{console.clock(sum(s for s, _ in seconds) / workers)} in all, {workers} at once")  # fmt: skip


__all__ = ["as_json", "comparison_of", "make", "show"]
