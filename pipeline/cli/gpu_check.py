"""`make gpu-check`: run every stage for a few steps on a random or a given model and print a table of measurements.

It checks, in minutes and without a model hub, whether this machine's GPU runs the pipeline correctly: bfloat16 with
float32 log-probs, the installed generator (vLLM or transformers), canary and mismatch, peak memory compared with
`plan`, tokens per second, and seconds per step by phase. Without a GPU it reports that and stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import verifiers
from pipeline.config import load as configs
from pipeline.run import console
from pipeline.run.files import atomic_write, dump_json, read_jsonl
from pipeline.run.manifest import read_manifest, versions
from pipeline.run.stage_dir import StageDir


@dataclass(frozen=True, slots=True)
class Size:
    """shape: of the random model: hidden, intermediate, layers, heads. prompts, samples: of each stage that samples.
    rows: per step of a trainer."""

    shape: tuple[int, int, int, int]
    prompts: int
    samples: int
    steps: int
    max_tokens: int
    rows: int


SIZES = {  # about 180M parameters, and a small one to test the check on a CPU
    "mid": Size((1024, 4096, 10, 16), prompts=64, samples=8, steps=6, max_tokens=64, rows=32),
    "small": Size((64, 128, 2, 2), prompts=8, samples=4, steps=4, max_tokens=16, rows=8),
}
STAGES = ("base", "sft", "feedme", "reward_model", "ppo", "grpo", "conditioned", "evaluate")
PAIRS = "pairs.jsonl"
PHASES = ("rollout", "score", "experience", "update", "sync")


def recipe(directory: Path, *, size: str, dtype: str, model: str | None = None) -> dict[str, Any]:
    """The YAML of the check. Random models solve nothing, so the filter keeps every completion that ended.

    model: directory or Hub id in place of the random model.
    """
    load = SIZES[size]
    hidden, intermediate, layers, heads = load.shape
    tiny = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 512,
    }
    trainer = {
        "max_steps": 30 if model else 10,  # a model that never ends its answers leaves FeedME no samples
        "per_device_train_batch_size": load.rows,
        "learning_rate": 1e-4 if model else 1e-3,
        "max_length": 128,
    }
    on_policy = {
        "policy": "sft",
        "steps": load.steps,
        "prompts": load.prompts,
        "samples": load.samples,
        "optimizer": {"learning_rate": 1e-6},
    }
    return {
        "run": "gpu-check",
        "runs_dir": str(directory),
        "model": {"dtype": dtype, **({"path": model} if model else {"tiny": tiny})},
        "prompts": {"procedural": "gridworld", "rows": 4000, "heldout": 0.25},
        "rewards": {"gridworld": {}},
        "sampling": {"max_tokens": load.max_tokens},
        "evaluation": {"samples": 4, "prompts": load.prompts},
        "stages": list(STAGES),
        "sft": {"policy": "base", "trainer": trainer},
        "feedme": {"rounds": 1, "prompts": load.prompts, "filters": [{"threshold": 0.0}], "trainer": trainer},
        "reward_model": {"data": {"path": str(directory / PAIRS), "heldout": 0.1}, "trainer": trainer},
        "ppo": {**on_policy, "reward": {"reward_model": {}}, "critic": {"warmup_steps": 1}},
        "grpo": on_policy,
        "conditioned": {"prompts": load.prompts, "demonstrations": 1000, "per_bin": 64, "trainer": trainer},
    }


def check(
    directory: Path, *, size: str = "mid", dtype: str = "bfloat16", model: str | None = None
) -> list[dict[str, Any]]:
    """Run the recipe and return one row per stage. Exceptions of a stage propagate: they explain the failure."""
    from pipeline import stages

    directory.mkdir(parents=True, exist_ok=True)
    rows = verifiers.load("gridworld").generate
    assert rows is not None, "the demo's verifier makes its own tasks"
    pairs = [
        {"prompt": r["prompt"], "chosen": r["completion"], "rejected": r["completion"] + "L"} for r in rows(512, 1)
    ]
    atomic_write(directory / PAIRS, "".join(dump_json(pair) + "\n" for pair in pairs))
    path = directory / "gpu-check.yaml"
    atomic_write(path, yaml.safe_dump(recipe(directory, size=size, dtype=dtype, model=model), sort_keys=False))
    cfg = configs.load(path)
    seen: list[dict[str, Any]] = []
    planned: dict[str, float] = {}
    for name in cfg.stages:
        before = _reset_peak()
        stages.run_stage(cfg, name)
        peak = peak_gib()
        planned = planned or planned_gib(cfg)  # from the model that the first stage created
        seen.append(row_of(StageDir(cfg.run_dir, name), before, peak, planned[name]))
    return seen


def planned_gib(cfg: configs.Config) -> dict[str, float]:
    """Stage -> GiB that `plan` predicts without the generator and the requests."""
    from pipeline.models import models
    from pipeline.plan import data_plan, estimate, trial

    model_dir = str(StageDir(cfg.run_dir, "base").model_dir)
    shape = estimate.Shape(**trial.shape_of(models.load_policy(model_dir, cfg.model)))
    data, _, _ = data_plan.data_of(cfg, models.load_tokenizer(model_dir, cfg.model))
    parts = {name: estimate.memory_of(cfg, name, shape, data, trial.Trial()).parts for name in cfg.stages}
    return {name: round((sum(p.values()) - p["requests"]) / 2**30, 2) for name, p in parts.items()}


def row_of(stage: StageDir, before: float | None, peak: float | None, planned: float) -> dict[str, Any]:
    """Measurements of one stage: seconds; peak memory, the part that the stage added, and the planned amount (the first
    stage opens the generator, which stays open); sync health; seconds per step by phase."""
    manifest = read_manifest(stage.manifest_path)
    assert manifest is not None, "a stage that returned has its manifest"
    metrics = manifest["metrics"]
    timing = list(read_jsonl(stage.path / "timing.jsonl")) if (stage.path / "timing.jsonl").is_file() else []
    steady = [row for row in timing if "step" in row][1:]  # the first step compiles and warms up
    seconds = {p: sum(r[p] for r in steady if p in r) / len(steady) for p in PHASES if any(p in r for r in steady)}
    return {
        "stage": stage.name,
        "seconds": round(manifest["wall_s"], 1),
        "peak_gib": peak,
        "added_gib": None if peak is None or before is None else round(peak - before, 2),
        "planned_gib": planned,
        "generator": metrics.get("generator", ""),
        "canary": metrics.get("canary_max_abs", ""),
        "mismatch": metrics.get("mismatch_mean_abs", ""),
        "tokens_per_s": round(sum(r["tokens_per_s"] for r in steady) / len(steady)) if steady else "",
        **{f"{phase}_s": round(value, 4) for phase, value in seconds.items()},
    }


def peak_gib() -> float | None:
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None


def _reset_peak() -> float | None:
    """Reset the peak counter and return the GiB allocated now."""
    import torch

    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    return round(torch.cuda.memory_allocated() / 2**30, 2)


def main(words: Sequence[str]) -> int:
    """Options: `to=DIR` (default runs/gpu-check); `model=PATH` takes that model in place of a random one; `size=small
    dtype=float32` tests the check itself without a GPU."""
    import torch

    from pipeline.cli.commands import options

    settings = options("gpu-check", words)
    size = settings.get("size", "mid")
    if size not in SIZES:
        raise configs.ConfigError([f"size={size}: have: {', '.join(SIZES)}"])
    if size != "small" and not torch.cuda.is_available():
        raise configs.ConfigError(["gpu-check: no CUDA device here; size=small dtype=float32 tries the check on a CPU"])
    directory = Path(settings.get("to", "runs/gpu-check"))
    rows = check(directory, size=size, dtype=settings.get("dtype", "bfloat16"), model=settings.get("model"))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    console.show_table(rows, columns)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    result = {"machine": machine, "versions": versions(), "size": size, "model": settings.get("model"), "stages": rows}
    atomic_write(directory / "gpu-check.json", dump_json(result, indent=1) + "\n")
    print(directory / "gpu-check.json")
    return 0
