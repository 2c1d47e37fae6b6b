"""`learn` with mostly fixed costs: the demo's gridworld, five-token answers, a model of 0.14M weights.

Both sides generate with transformers, which is faster for each of them on answers this short.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.learn import SEEDS, Race, compared
from benchmarks.workload import Workload, our_config

WORK = Workload(
    prompts=32, samples=8, max_tokens=16, steps=161, kl=0.0, learning_rate=3e-4, verifier="gridworld", judge_every=10
)


def run(rounds: int = len(SEEDS)) -> dict[str, Any]:
    """rounds: number of seeds to use."""
    races = [
        Race(replace(WORK, seed=seed), partial(lay, start=imitated(seed)), ("ours_transformers", "trl_hf"), 0.15)
        for seed in SEEDS[:rounds]
    ]
    return compared(races, "learn_short_vs_trl")


def imitated(seed: int) -> Path:
    """The demo's sft stage with this seed, run once; both sides start from it."""
    name = f"bench-learn-{seed}"
    command = [sys.executable, "-m", "pipeline", "run", "configs/demo/pipeline.yaml", f"run={name}", f"seed={seed}"]
    subprocess.run([*command, "stages=[base, sft]"], check=True, stdout=subprocess.DEVNULL)
    return Path("runs") / name / "sft" / "model"


def lay(place: Path, work: Workload, start: Path) -> None:
    import verifiers
    from pipeline.config.schema import Prompts
    from pipeline.data.prompts import part_of

    shutil.copytree(start, place / "model")
    (place / "verifiers").mkdir()
    generate = verifiers.load("gridworld", []).generate
    assert generate is not None
    rows = {r["prompt"]: {"prompt": r["prompt"], "task": r["task"]} for r in generate(20_000, work.seed)}
    source = Prompts(procedural="gridworld", heldout=0.25)
    for name, part in (("prompts", "train"), ("heldout", "heldout")):
        chosen = [json.dumps(row) for text, row in sorted(rows.items()) if part_of(text, source) == part]
        (place / f"{name}.jsonl").write_text("\n".join(chosen) + "\n")
    (place / "ours.yaml").write_text(json.dumps(our_config(place, work)))
