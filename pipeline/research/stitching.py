"""stitch: which methods join two logged halves into the best walk, which no log contains (`verifiers/stitch.py`).

A method is measured by P(1→2→3), computed exactly from its policy's log-probs, and by its credit accuracy: the share of
logged pairs of steps from one place that its credit ranks in the same order as optimal play. Every method runs the code
of its own stage (`pipeline.research.stitching_methods`) on the same logs, for each seed and each kind of memory:
prompts that show only the state, and prompts that contain the history.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.config.load import ConfigError, nearest
from pipeline.models import models
from pipeline.research.stitching_methods import METHODS, QUERIES_ENVIRONMENT, Bench, MethodResult
from pipeline.run import console
from pipeline.run.files import atomic_write, dump_json
from pipeline.stages.context import Context
from pipeline.stats import mean
from pipeline.update.forward import CompletionLogprobs, Row, completion_logprobs
from verifiers import stitch

TIE = 0.02
COLUMNS = ("method", "prompts", "stitched", "low", "high", "credit_accuracy", "environment")


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    names = check_methods(ctx)
    ctx.dir.checkpoints.resume()  # no checkpoints are kept: this removes a killed attempt from the logs
    runs: list[dict[str, Any]] = []
    for seed in block.seeds:
        base = base_model(ctx, seed)
        tokenizer = models.load_tokenizer(base, ctx.cfg.model)
        for memory in block.memories:
            bench = Bench(ctx, seed, memory, base, tokenizer)
            for name in names:
                started = time.process_time()
                outcome = METHODS[name](bench)
                figures = {"method": name, "prompts": memory, "seed": seed, "stitched": stitched(bench, outcome),
                           "credit_accuracy": credit_accuracy(outcome.credit, block.medium)}  # fmt: skip
                runs.append(figures)
                ctx.dir.logs.log(figures)
                ctx.dir.logs.log_timing({"method": name, "prompts": memory, "seed": seed,
                                    "cpu_s": round(time.process_time() - started, 2)})  # fmt: skip
                console.say(f"{ctx.name}: seed {seed}, {memory} prompts, {name}: P(1→2→3) "
                            f"{console.number(figures['stitched'])}")  # fmt: skip
    table = summary(runs)
    console.show_table(table, COLUMNS)
    atomic_write(ctx.dir.path / "table.json", dump_json(table, indent=1) + "\n")
    return {"table": table, "runs": runs, "medium": block.medium}


def check_methods(ctx: Context) -> list[str]:
    names = ctx.block.methods or list(METHODS)
    unknown = [n for n in names if n not in METHODS]
    if unknown:
        raise ConfigError(
            [f"{ctx.cfg.path}: {ctx.name}.methods: no method {n!r}{nearest(n, METHODS)}" for n in unknown]
        )
    return names


def base_model(ctx: Context, seed: int) -> str:
    """A tiny model initialised from this seed, or the model named in the YAML."""
    if ctx.cfg.model.tiny is None:
        return ctx.model_path("model", "model.path")
    directory = ctx.dir.path / f"base-{seed}"
    models.make_tiny(ctx.cfg.model.tiny, directory, seed=seed)
    return str(directory)


def stitched(bench: Bench, outcome: MethodResult) -> float:
    """Mean over gadgets of P(1→2→3) from place 1; each step includes its end token, at temperature 1."""
    tokenizer, rows = bench.tokenizer, []
    label = tuple(tokenizer(outcome.label, add_special_tokens=False).input_ids)
    for gadget in range(stitch.GADGETS):
        history: tuple[int, ...] = ()
        for here, to in zip(stitch.BEST[:-1], stitch.BEST[1:], strict=True):
            seen = (*history, *tokenizer(stitch.prompt(gadget, here)).input_ids)
            ids = (*tokenizer(stitch.symbol(gadget, to), add_special_tokens=False).input_ids, tokenizer.eos_token_id)
            rows.append(Row((*label, *seen), ids, (True,) * len(ids)))
            history = (*seen, *ids) if bench.memory == "history" else ()
    forward = CompletionLogprobs(outcome.model, temperature=1.0)
    logprobs = completion_logprobs(forward, rows, budget=16_384, device=next(outcome.model.parameters()).device)
    steps_GK = torch.stack([x.sum() for x in logprobs]).view(stitch.GADGETS, -1)
    return float(steps_GK.sum(1).exp().mean())


def credit_accuracy(credit: Sequence[float], medium: float) -> float:
    """Share of pairs of steps from one place whose mean credit has the same order as Q*; a tie counts half.

    Learned credit is never exactly equal: a gap below 2% of the spread of all credit is a tie.
    """
    given: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    turns = [turn for walk in stitch.logs(medium) for turn in walk]
    for turn, value in zip(turns, credit, strict=True):
        given[turn.gadget, turn.place, turn.to].append(value)
    spread, right = max(credit) - min(credit), []
    for gadget in range(stitch.GADGETS):
        for place, (a, b) in stitch.STEPS.items():
            best = stitch.best_values(place, medium)
            better, worse = (a, b) if best[a] > best[b] else (b, a)
            gap = mean(given[gadget, place, better]) - mean(given[gadget, place, worse])
            right.append(0.5 if abs(gap) <= TIE * spread else float(gap > 0))
    return mean(right)


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line per method and kind of memory: mean over seeds, and the lowest and highest seed."""
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for one in runs:
        lines[one["prompts"], one["method"]].append(one)
    return [
        {
            "method": method,
            "prompts": memory,
            "stitched": mean([r["stitched"] for r in found]),
            "low": min(r["stitched"] for r in found),
            "high": max(r["stitched"] for r in found),
            "credit_accuracy": mean([r["credit_accuracy"] for r in found]),
            "environment": "queried" if method in QUERIES_ENVIRONMENT else "not queried",
            "seeds": [r["seed"] for r in found],
        }
        for (memory, method), found in lines.items()
    ]
