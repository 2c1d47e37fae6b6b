"""time_to_target: policy stages from one start over several seeds; what each spends until its curve reaches a target.

Every part is an ordinary stage in an ordinary run, so a finished part is not run again and a killed one is resumed:

    runs/NAME/start/            the stages up to the common start, unless the YAML's own `stages` hold them; run once
    runs/NAME/seed-1/METHOD/    each method under seed 1
    runs/NAME/time_to_target/   manifest.json and table.json: tokens, checks and seconds to the target, charts

The seconds are computed: those of a step without checks, measured, plus the seconds of its checks, as many of which run
at once as `checks_at_once` says. `slow_runs` holds them against runs with a verifier that really takes so long.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.load import Config, ConfigError
from pipeline.config.stage_graph import at_once, target_check, target_runs
from pipeline.run import console
from pipeline.run.files import atomic_write, dump_json, read_jsonl
from pipeline.run.manifest import verified_manifest
from pipeline.run.stage_dir import StageDir
from pipeline.stages.comparison.compare import inputs_of, parts_of
from pipeline.stages.comparison.stage_pool import run_parts
from pipeline.stages.context import Context
from pipeline.stats import is_number, mean

COLUMNS = ("method", "reached", "tokens", "tokens_low", "tokens_high", "checks", "steps", "last")


@dataclass(frozen=True, slots=True)
class Spent:
    """One method under one seed. steps, tokens, checks: per point of the curve, spent so far. checks_per_step: of every
    step. step_s: seconds of each step, its checks included."""

    steps: list[int]
    values: list[float]
    tokens: list[float]
    checks: list[float]
    checks_per_step: list[float]
    step_s: list[float]


def run(ctx: Context) -> dict[str, Any]:
    cfg, block = ctx.cfg, ctx.block
    target_check(cfg, ctx.name)
    start, *seeds = target_runs(cfg, ctx.name)
    run_parts(
        parts_of(start, seeds),
        workers=at_once(cfg, ctx.name),
        logs=ctx.dir.path / "logs",
        setting=f"{ctx.name}.workers",
    )
    ctx.depend_on(*(StageDir(c.run_dir, name).manifest_path for c in seeds for name in c.stages))
    ctx.inputs |= inputs_of([start, *seeds])
    spent = {name: [read(c, name, block.column) for c in seeds] for name in [*block.methods, *block.slow_runs]}
    table = [row(name, spent[name], block.target, block.average) for name in block.methods]
    console.show_table(table, COLUMNS)
    out = {"table": table, "target": block.target, "column": block.column, "seeds": list(block.seeds),
           "charts": [learning_chart(block, spent)]}  # fmt: skip
    if block.check_costs_s:
        out |= costs(block, spent)
        out["charts"].append(cost_chart(block, out["seconds"]))
        console.show_table(out["break_even"], ("method", "against", "break_even_s", "faster"))
    if block.slow_runs:
        out["slow_runs"] = slow_runs(block, spent)
        console.show_table(out["slow_runs"], ("method", "check_s", "computed_s", "measured_s"))
    atomic_write(ctx.dir.path / "table.json", dump_json(out, indent=1) + "\n")
    return out


# --- what it spent ---------------------------------------------------------------------------------------------------


def read(cfg: Config, name: str, column: str) -> Spent:
    """The curve of one finished method and what it had spent at each point."""
    directory, block = StageDir(cfg.run_dir, name), cfg.blocks[name]
    verified_manifest(directory.path)
    lines = list(read_jsonl(directory.path / "metrics.jsonl"))
    seconds = [seconds_of(line) for line in read_jsonl(directory.path / "timing.jsonl")]
    out = Spent([], [], [], [], [], seconds)
    tokens = checks = 0.0
    for line in lines:
        rows = block.prompts * block.samples * int(line.get("batches_sampled", 1)) + int(line.get("continuations", 0))
        share = next((v for k, v in line.items() if k.endswith("/share_checked")), 1.0)
        tokens += float(line["tokens"]) + float(line.get("continuation_tokens", 0))
        checks += share * rows
        out.checks_per_step.append(share * rows)
        if is_number(line.get(column)):
            out.steps.append(int(line["step"]))
            out.values.append(float(line[column]))
            out.tokens.append(tokens)
            out.checks.append(checks)
    if not out.values:
        raise ConfigError([f"{cfg.path}: no line of {directory.path}/metrics.jsonl has {column!r}; for held-out "
                           f"figures give {name}.evaluate_every"])  # fmt: skip
    return out


def seconds_of(line: Mapping[str, Any]) -> float:
    """Seconds of a step from its line of timing.jsonl: the sum over its phases."""
    phases = ("rollout", "experience", "update", "wait", "sync")
    return sum(float(line.get(phase, 0.0)) for phase in phases)


def crossing(values: Sequence[float], spent: Sequence[float], target: float, *, average: int = 1) -> float:
    """What was spent when the curve first reached the target: linear between two points; NaN if it never did.

    average: the curve is the mean of the last so many values.
    """
    curve = [mean(list(values[max(0, i + 1 - average) : i + 1])) for i in range(len(values))]
    for i, value in enumerate(curve):
        if value >= target:
            if i == 0:
                return float(spent[0])
            share = (target - curve[i - 1]) / (value - curve[i - 1])
            return float(spent[i - 1] + share * (spent[i] - spent[i - 1]))
    return math.nan


def row(name: str, seeds: Sequence[Spent], target: float, average: int) -> dict[str, Any]:
    """A method's line of the table; means over the seeds that reached the target."""
    tokens = [crossing(s.values, s.tokens, target, average=average) for s in seeds]
    reached = [i for i, t in enumerate(tokens) if not math.isnan(t)]
    steps = [crossing(seeds[i].values, seeds[i].steps, target, average=average) for i in reached]
    checks = [crossing(seeds[i].values, seeds[i].checks, target, average=average) for i in reached]
    some = [tokens[i] for i in reached]
    return {
        "method": name,
        "reached": f"{len(reached)} of {len(seeds)}",
        "tokens": mean(some),
        "tokens_low": min(some, default=math.nan),
        "tokens_high": max(some, default=math.nan),
        "tokens_by_seed": tokens,
        "checks": mean(checks),
        "steps": mean(steps),
        "last": mean([mean(s.values[-average:]) for s in seeds]),
    }


# --- seconds as a function of the cost of a check ------------------------------------------------------------------


def simulated(spent: Spent, upto: float, *, step_s: float, check_s: float, at_once: int) -> float:
    """Seconds of the first `upto` steps, the last one in part: step_s each, and their checks in rounds of at_once."""
    total = 0.0
    for number, checks in enumerate(spent.checks_per_step):
        share = min(max(upto - number, 0.0), 1.0)
        total += share * (step_s + math.ceil(round(checks, 6) / at_once) * check_s)
    return total


def costs(block: Any, spent: Mapping[str, Sequence[Spent]]) -> dict[str, Any]:
    """Seconds to the target by method and cost of a check; and the cost from which each is faster than the first.

    step_s: the median over all steps of all methods, so that what ran beside them on the machine cancels out.
    """
    step_s = statistics.median([s for name in block.methods for seed in spent[name] for s in seed.step_s])
    seconds = {
        name: [mean_seconds(block, spent[name], step_s, c) for c in block.check_costs_s] for name in block.methods
    }
    first = block.methods[0]
    lines = {name: (mean_seconds(block, spent[name], step_s, 0.0), mean_seconds(block, spent[name], step_s, 1.0))
             for name in block.methods}  # fmt: skip
    break_even = []
    for name in block.methods[1:]:
        cost = break_even_cost(lines[first], lines[name])
        break_even.append({"method": name, "against": first, "break_even_s": cost, "faster": faster(cost)})
    return {"step_s": step_s, "check_costs_s": list(block.check_costs_s), "seconds": seconds, "break_even": break_even}


def mean_seconds(block: Any, seeds: Sequence[Spent], step_s: float, check_s: float) -> float:
    """Mean over seeds of the computed seconds to the target; NaN unless all of them reached it."""
    upto = [crossing(s.values, s.steps, block.target, average=block.average) for s in seeds]
    each = [simulated(s, u, step_s=step_s, check_s=check_s, at_once=block.checks_at_once)
            for s, u in zip(seeds, upto, strict=True)]  # fmt: skip
    return math.nan if any(math.isnan(u) for u in upto) else mean(each)


def break_even_cost(first: tuple[float, float], other: tuple[float, float]) -> float:
    """The seconds per check from which `other` is faster: each pair is a line's value at 0 and at 1 second.

    0 if it is faster at any cost; infinity if it never is; NaN for a line that is not known.
    """
    (a, a1), (b, b1) = first, other
    if any(map(math.isnan, (a, a1, b, b1))):
        return math.nan
    slower, saved = b - a, (a1 - a) - (b1 - b)
    if slower <= 0:
        return 0.0 if saved >= 0 else math.nan
    return slower / saved if saved > 0 else math.inf


def faster(cost: float) -> str:
    """A break-even cost in words."""
    if math.isnan(cost):
        return "unknown: a seed did not reach the target"
    if math.isinf(cost):
        return "never"
    return f"from {cost:.3g} s per check on" if cost else "at any cost"


def slow_runs(block: Any, spent: Mapping[str, Sequence[Spent]]) -> list[dict[str, Any]]:
    """Per run with a verifier that really is slow: its seconds as computed and as measured, over all of its steps."""
    out = []
    for name, check_s in block.slow_runs.items():
        quick = statistics.median([s for other in block.methods for seed in spent[other] for s in seed.step_s])
        each = [(simulated(s, len(s.checks_per_step), step_s=quick, check_s=check_s, at_once=block.checks_at_once),
                 math.fsum(s.step_s)) for s in spent[name]]  # fmt: skip
        out.append({"method": name, "check_s": check_s, "computed_s": mean([c for c, _ in each]),
                    "measured_s": mean([m for _, m in each])})  # fmt: skip
    return out


# --- charts ---------------------------------------------------------------------------------------------------------


def learning_chart(block: Any, spent: Mapping[str, Sequence[Spent]]) -> dict[str, Any]:
    """The curves by sampled tokens: mean over seeds, with the lowest and highest seed."""
    series = []
    for name in block.methods:
        points = list(zip(*(s.values for s in spent[name]), strict=False))
        tokens = [mean(list(t)) for t in zip(*(s.tokens for s in spent[name]), strict=False)]
        series.append({"name": name, "x": tokens, "y": [mean(list(p)) for p in points], "low": [min(p) for p in points],
                       "high": [max(p) for p in points]})  # fmt: skip
    note = "mean; band: lowest and highest seed"
    return {"title": f"{block.column} by sampled tokens", "xLabel": "sampled tokens", "series": series, "note": note,
            "lines": [{"y": block.target, "text": "target"}]}  # fmt: skip


def cost_chart(block: Any, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Seconds to the target by the seconds of one check, over those of the first method; below 1 a method is faster."""
    first = block.methods[0]
    series = [{"name": name, "x": list(block.check_costs_s),
               "y": [own / base for own, base in zip(seconds[name], seconds[first], strict=True)]}
              for name in block.methods if not all(map(math.isnan, seconds[name]))]  # fmt: skip
    return {"title": f"time to the target, relative to {first}", "note": "computed; a line that crosses 1 breaks even",
            "xLabel": "seconds per check", "series": series, "logX": True, "yMin": 0.0,
            "lines": [{"y": 1.0, "text": "breaks even"}]}  # fmt: skip
