"""CPU and wall time, and sampled tokens, until a policy solves a held-out share of the gridworld: ours and stock TRL.

Both start from the same imitated model and take 32 prompts x 8 samples a step at one learning rate, without a KL, and
are judged every few steps by the same code on the same held-out prompts, which is not counted. Ours samples with vLLM;
TRL with transformers, which is the faster of its two on answers this short.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.worker import Worker
from benchmarks.workload import Workload, our_config

SEEDS = (1, 2, 3)
GAIN = 0.15  # the target: so much above the imitated start in held-out accuracy
WORK = Workload(
    prompts=32, samples=8, max_tokens=16, steps=161, kl=0.0, learning_rate=3e-4, verifier="gridworld", judge_every=10
)
STARTS = Path("runs")


def run(rounds: int = len(SEEDS)) -> dict[str, Any]:
    """rounds: how many of the seeds."""
    races = []
    for seed in SEEDS[:rounds]:
        races.append(race(seed))
        print(json.dumps(races[-1]), flush=True)

    def ratio(figure: str) -> float:
        return statistics.median(r["trl_hf"][figure] / r["ours"][figure] for r in races)

    return {
        "ratios": {"learn_vs_trl": ratio("cpu")},
        "wall_ratio": ratio("wall"),
        "token_ratio": ratio("tokens"),
        "gain": GAIN,
        "seeds": races,
    }


def race(seed: int) -> dict[str, Any]:
    """Steps in turns until each side has reached the target."""
    start, work = imitated(seed), replace(WORK, seed=seed)

    def lay(place: Path, work: Workload) -> None:
        lay_gridworld(place, work, start)

    with Worker("ours", work, lay) as ours, Worker("trl_hf", work, lay) as theirs:
        target = start_accuracy(Path(ours.folder.name), work) + GAIN
        running = [ours, theirs]
        taken: dict[str, list[dict[str, float]]] = {w.side: [] for w in running}
        while running:
            for worker in tuple(running):
                figures = worker.step()
                taken[worker.side].append(figures)
                if figures.get("accuracy", 0.0) >= target or len(taken[worker.side]) == work.steps - 1:
                    running.remove(worker)
    return {"seed": seed, "target": target, **{side: total(steps, target) for side, steps in taken.items()}}


def total(steps: Sequence[dict[str, float]], target: float) -> dict[str, Any]:
    curve = [round(s["accuracy"], 4) for s in steps if "accuracy" in s]
    sums = {name: sum(s[name] for s in steps) for name in ("wall", "cpu", "tokens")}
    return {**sums, "steps": len(steps), "reached": curve[-1] >= target, "curve": curve}


def imitated(seed: int) -> Path:
    """The demo's sft stage with this seed, made once: where both sides start."""
    name = f"bench-learn-{seed}"
    command = [sys.executable, "-m", "pipeline", "run", "configs/demo/pipeline.yaml", f"run={name}", f"seed={seed}"]
    subprocess.run([*command, "stages=[base, sft]"], check=True, stdout=subprocess.DEVNULL)
    return STARTS / name / "sft" / "model"


def lay_gridworld(place: Path, work: Workload, start: Path) -> None:
    import verifiers
    from pipeline.prompts import is_heldout

    shutil.copytree(start, place / "model")
    (place / "verifiers").mkdir()
    generate = verifiers.load("gridworld", []).generate
    assert generate is not None
    rows = {r["prompt"]: {"prompt": r["prompt"], "task": r["task"]} for r in generate(20_000, work.seed)}
    for name, wanted in (("prompts", False), ("heldout", True)):
        chosen = [json.dumps(row) for text, row in sorted(rows.items()) if is_heldout(text, 0.25) is wanted]
        (place / f"{name}.jsonl").write_text("\n".join(chosen) + "\n")
    (place / "ours.yaml").write_text(json.dumps(our_config(place, work)))


def start_accuracy(place: Path, work: Workload) -> float:
    from transformers import AutoModelForCausalLM

    from benchmarks.judge import judge

    return judge(place, AutoModelForCausalLM.from_pretrained(place / "model", dtype="float32"), work)
