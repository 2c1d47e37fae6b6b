"""The same YAML under several seeds: means over the seeds, with intervals. Numbers come from the runs' manifests.

runs/NAME/seed-1/ ...   an ordinary run per seed
runs/NAME/seeds.json    the table, and every figure of every stage
runs/NAME/table.md      the table in Markdown

An interval here is about training again with another seed, on these held-out prompts; the interval of one run
(`heldout_accuracy_ci95`) is about other prompts, for this trained model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.load import Config
from pipeline.run import console
from pipeline.run.files import atomic_write, dump_json
from pipeline.run.manifest import read_manifest
from pipeline.stats import is_number, mean_over_runs

NAME = "seeds.json"
Figures = Mapping[str, Mapping[str, Any]]  # stage -> metrics of its manifest


def write_table(cfgs: Sequence[Config], directory: Path) -> None:
    """Write and print the table of complete runs. directory: the runs' common directory."""
    runs = [figures_of(cfg) for cfg in cfgs]
    starts = {name: getattr(block, "policy", "") for name, block in cfgs[0].blocks.items()}
    table = policy_rows(runs, starts)
    figures = {name: stage_figures([run[name] for run in runs]) for name in runs[0]}
    seeds = [cfg.seed for cfg in cfgs]
    content = {"seeds": seeds, "runs": [cfg.run_dir.name for cfg in cfgs], "table": table, "figures": figures}
    atomic_write(directory / NAME, dump_json(content, indent=1) + "\n")
    atomic_write(directory / "table.md", markdown(table))
    console.say(f"── {len(seeds)} seeds: {', '.join(map(str, seeds))}; 95% intervals over seeds, Student t")
    console.show_table([shown(row) for row in table], ["policy", "accuracy", "95%", "by seed", "gain", "over"])
    console.say(f"table: {directory / 'table.md'}; every figure: {directory / NAME}")


def figures_of(cfg: Config) -> dict[str, Mapping[str, Any]]:
    """Stage -> metrics of its manifest, for the stages that are complete."""
    made = {name: read_manifest(cfg.run_dir / name / "manifest.json") for name in cfg.stages}
    return {name: manifest["metrics"] for name, manifest in made.items() if manifest is not None}


def policy_rows(runs: Sequence[Figures], starts: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per policy and per control. runs: one per seed. starts: stage -> the policy that it started from.

    Accuracy is that of the last `evaluate` where there is one, else what each stage reported itself.
    """
    accuracy = [accuracies(run) for run in runs]
    names = [name for name in accuracy[0] if all(name in each for each in accuracy)]
    rows = []
    for name in names:
        values = [each[name] for each in accuracy]
        middle, low, high = mean_over_runs(values)
        row: dict[str, Any] = {"policy": name, "accuracy": middle, "ci95": [max(low, 0.0), min(high, 1.0)],
                               "by_seed": values}  # fmt: skip
        start = starts.get(name.partition("/")[0], "")
        if start in names and start != name:
            gain = mean_over_runs([each[name] - each[start] for each in accuracy])
            row |= {"over": start, "gain": dict(zip(("mean", "low", "high"), gain, strict=True))}
        rows.append(row)
    return rows


def accuracies(run: Figures) -> dict[str, float]:
    """Policy, or stage/control -> held-out accuracy under one seed."""
    judged = [figures["policies"] for figures in run.values() if isinstance(figures.get("policies"), list)]
    of_policies = {row["policy"]: row["heldout_accuracy"] for row in judged[-1]} if judged else {}
    out: dict[str, float] = {}
    for name, figures in run.items():
        own = of_policies.get(name, None if judged else figures.get("heldout_accuracy"))
        if is_number(own):
            out[name] = float(own)
        out |= {f"{name}/{control}": float(figures[f"{control}_accuracy"]) for control in CONTROLS
                if is_number(figures.get(f"{control}_accuracy"))}  # fmt: skip
    return out


CONTROLS = ("random_control", "more_sft", "best_of_n", "filtered_sft", "unconditioned", "top_bin")


def stage_figures(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every number that the stage reported under all seeds: its mean, interval and values."""
    out = {}
    for name in metrics[0]:
        values = [each.get(name) for each in metrics]
        if all(is_number(value) for value in values):
            middle, low, high = mean_over_runs([float(value) for value in values if value is not None])
            out[name] = {"mean": middle, "ci95": [low, high], "by_seed": values}
    return out


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """A row as text."""
    gain = row.get("gain")
    return {
        "policy": row["policy"],
        "accuracy": f"{row['accuracy']:.3f}",
        "95%": "one seed" if math.isnan(row["ci95"][0]) else f"{row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}",
        "by seed": " ".join(f"{value:.3f}" for value in row["by_seed"]),
        "gain": f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" if gain else "",
        "over": row.get("over", ""),
    }


def markdown(table: Sequence[Mapping[str, Any]]) -> str:
    rows = [shown(row) for row in table]
    head = ["policy", "accuracy", "95%", "by seed", "gain", "over"]
    lines = [head, ["---"] * len(head), *([row[name] for name in head] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


__all__ = ["NAME", "accuracies", "markdown", "policy_rows", "stage_figures", "write_table"]
