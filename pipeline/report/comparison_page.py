"""What a comparison adds to a report: its table and the data of its plots. Rollouts are those of its first seed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.sweeps import last_key, variant_name
from pipeline.report.collect import Stage, read_stages
from pipeline.report.summary import facts
from pipeline.run.manifest import read_manifest


def stitching(names: Mapping[str, str], directory: Path) -> dict[str, Any]:
    """The stitching benchmark's figures under the methods' names, for prompts that show the state alone."""
    table = read_manifest(directory / "manifest.json") if names else None
    if table is None:
        return {
            "methods": {},
            "words": f"Stitching was not run: {directory} holds no table; see configs/stitch/pipeline.yaml.",
        }
    rows = {r["method"]: r for r in table["metrics"].get("table", []) if r.get("prompts") == "state"}
    figures = {method: rows[name]["stitched"] for method, name in names.items() if name in rows}
    words = (
        "Stitching: the probability of the one best walk, of which the logs hold only halves; every method learns from "
        "the same logs, so fresh samples cannot help. Its own table is in docs/stitch.md."
    )
    return {"methods": figures, "words": words}


def sweep_plots(
    sweep: Mapping[str, Mapping[str, list[Any]]], rows: list[dict[str, Any]], by: str = "accuracy"
) -> list[dict[str, Any]]:
    """One plot per swept method: the key with the most values along x, one line per combination of the others.

    Each line: name, and per value what the methods are compared by (`by`, a column of the rows) with its interval, or
    None where the table has no such row.
    """
    by_name = {row["method"]: row for row in rows}
    plots = []
    for method, axes in sweep.items():
        key = max(axes, key=lambda name: len(axes[name]))
        others = [name for name in axes if name != key]
        lines = []
        for rest in itertools.product(*(axes[name] for name in others)):
            fixed = dict(zip(others, rest, strict=True))
            # **axes first, for its order: that of the YAML, in which a variant is named
            found = [by_name.get(variant_name(method, {**axes, **fixed, key: value})) for value in axes[key]]
            lines.append(
                {
                    "name": ", ".join(f"{last_key(name)} {value}" for name, value in fixed.items()) or method,
                    "y": [row and row[by] for row in found],
                    "low": [row and row["ci95"][0] for row in found],
                    "high": [row and row["ci95"][1] for row in found],
                }
            )
        plots.append({"method": method, "key": key, "values": [str(value) for value in axes[key]], "lines": lines})
    return plots


@dataclass(frozen=True, slots=True)
class Compared:
    """stages: those of the first seed; data: what `pipeline.stages.comparison.compare` concluded."""

    stages: list[Stage]
    facts: list[list[str]]
    data: dict[str, Any]


def read(directory: Path) -> Compared | None:
    """The comparison at `directory`, or None where it is a run of another kind, or is not finished."""
    manifest = read_manifest(directory / "compare" / "manifest.json")
    if manifest is None or not manifest["metrics"].get("runs"):
        return None
    data = dict(manifest["metrics"])
    seen: dict[Path, Stage] = {}  # the start's stages are linked into each seed's run: count them once
    for run in data["runs"]:
        for stage in read_stages(directory / str(run)):
            seen.setdefault(stage.path.resolve(), stage)
    settings = manifest.get("config", {}).get("stage", {})
    data["stitching"] = stitching(settings.get("stitching") or {}, Path(str(settings.get("stitching_run") or "")))
    data["sweeps"] = sweep_plots(settings.get("sweep") or {}, data["table"], data.get("measure", "accuracy"))
    budget = [["budget", f"{data.get('budget', 0):,} tokens per method"]]
    return Compared(read_stages(directory / str(data["runs"][0])), facts(list(seen.values())) + budget, data)
