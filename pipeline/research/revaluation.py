"""revalue: after the reward or the world has changed, how much is right at once, and after how many new samples?

The world, its changes and what the logs hold: verifiers/revalue.py. A method is measured by the probability of the
changed world's best walk from A, computed exactly from its policy's log-probs and averaged over gadgets: before the
change, at once (after one sample of each changed step), and after further random walks of the changed world. Every cell
is saved when it is finished, so a killed run continues there.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.load import ConfigError, nearest
from pipeline.models import models
from pipeline.research.revaluation_methods import METHODS, ONLINE, RevalueBench, grpo, new_samples
from pipeline.research.stitching import base_model
from pipeline.run import console
from pipeline.run.files import atomic_write, dump_json
from pipeline.stages.context import Context
from pipeline.stats import mean
from verifiers import revalue

RIGHT = 0.5  # the probability of the best walk from which a policy is said to take it


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    names = check_methods(ctx)
    cells: list[dict[str, Any]] = []
    bases = {seed: base_model(ctx, seed) for seed in block.seeds}
    for memory in block.memories:
        for seed, base in bases.items():
            tokenizer = models.load_tokenizer(base, ctx.cfg.model)
            bench = RevalueBench(ctx, seed, memory, base, tokenizer)
            for name in names:
                for change in block.changes:
                    where = {"seed": seed, "prompts": memory, "method": name, "change": change}
                    cells += kept(ctx, where, lambda b=bench, n=name, c=change: curve(b, n, c))  # type: ignore[misc]
                console.say(f"{ctx.name}: seed {seed}, {memory} prompts, {name}: done")
    table = summary(cells)
    for memory in block.memories:
        shown = [line for line in table if line["prompts"] == memory]
        columns = columns_of(sorted({*block.walks, *(block.online_walks if ONLINE in names else ())}))
        console.show_table(shown, ("method", "change", *columns, "steps_to_right"))
    atomic_write(ctx.dir.path / "table.json", dump_json(table, indent=1) + "\n")
    return {"table": table, "cells": cells}


def check_methods(ctx: Context) -> list[str]:
    """Raises ConfigError for a method that does not exist, or walks that grpo cannot sample in whole steps."""
    known, block = [*METHODS, ONLINE], ctx.block
    names = block.methods or known
    key = f"{ctx.cfg.path}: {ctx.name}"
    mistakes = [f"{key}.methods: no method {n!r}{nearest(n, known)}" for n in names if n not in known]
    for name, walks in (("walks", block.walks), ("online_walks", block.online_walks)):
        if not walks or walks != sorted(set(walks)):
            mistakes.append(f"{key}.{name}: {walks} must be one or more rising numbers")
    samples = block.loop.samples
    if ONLINE in names and any(count % samples for count in block.online_walks):
        mistakes.append(f"{key}.online_walks: grpo samples loop.samples {samples} walks of each gadget per step, so "
                        f"{block.online_walks} must be multiples of {samples}")  # fmt: skip
    if mistakes:
        raise ConfigError(mistakes)
    return list(names)


def curve(bench: RevalueBench, method: str, change: str) -> list[dict[str, Any]]:
    """One method after one change: per number of new walks, the new steps per gadget and P of the best walk."""
    best, walks = revalue.WORLDS[change].best_walk(), bench.settings.walks
    if method == ONLINE:
        curves = grpo(bench, change, [0, *bench.settings.online_walks])
        # its own walks have about three steps each; it is given no sample of the change
        return [{"walks": count or -1, "steps": 3.0 * count, "right": by[best]} for count, by in curves.items()]
    out = [{"walks": -1, "steps": 0.0, "right": METHODS[method](bench, change, [])[best]}]
    for count in walks:
        new = new_samples(change, count, bench.seed)
        steps = sum(len(walk.places) - 1 for walk in new) / revalue.GADGETS
        out.append({"walks": count, "steps": steps, "right": METHODS[method](bench, change, new)[best]})
    return out


def kept(ctx: Context, where: Mapping[str, Any], make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The lines of one cell, computed once; a killed run reads them from its earlier attempt."""

    def write(directory: Path) -> None:
        lines = [{**where, **line} for line in make()]
        for line in lines:
            ctx.dir.logs.log(line)
        (directory / "cell.json").write_text(dump_json(lines) + "\n")

    directory = ctx.dir.checkpoints.once("-".join(map(str, where.values())), write)
    lines: list[dict[str, Any]] = json.loads((directory / "cell.json").read_text())
    return lines


def column(walks: int) -> str:
    return {-1: "before", 0: "at_once"}.get(walks, f"walks_{walks}")


def columns_of(walks: Sequence[int]) -> list[str]:
    return [column(count) for count in (-1, *walks)]


def summary(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line per method, change and kind of memory: means over seeds, with the lowest and highest seed, and the new
    steps per gadget from which every further judgement has P of the best walk at least RIGHT (None: never)."""
    lines: dict[tuple[str, str, str], dict[int, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        lines[cell["prompts"], cell["method"], cell["change"]][cell["walks"]].append(cell)
    out = []
    for (memory, method, change), by_walks in lines.items():
        line: dict[str, Any] = {"prompts": memory, "method": method, "change": change}
        line["steps_to_right"] = None
        for walks, found in sorted(by_walks.items(), reverse=True):
            values = [cell["right"] for cell in found]
            line |= {column(walks): mean(values), f"{column(walks)}_range": [min(values), max(values)]}
        for walks in sorted(by_walks, reverse=True):
            if line[column(walks)] < RIGHT:
                break
            line["steps_to_right"] = mean([cell["steps"] for cell in by_walks[walks]])
        out.append(line)
    return out
