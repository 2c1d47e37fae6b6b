"""What stock TRL GRPO learns on a real model, at as many sampled tokens as ours, on the same task from the same SFT.

    make compare CONFIG=configs/real/compare.yaml
    RUN=runs/real_compare python -m benchmarks real_learn --rounds 3

Per seed of the comparison, TRL's GRPOTrainer trains the comparison's SFT on the same prompts with the same verifier,
learning rate, prompts and samples per step and longest answer, everything else being TRL's default, until its
completions have as many tokens as our `grpo` sampled. Then one `evaluate` judges start, ours and TRL's on the same
held-out prompts with the same seeds. A model that TRL has trained is kept in RUN/trl/seed-N and not trained again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SIDES = ("start", "ours", "trl")
MICRO_ROWS = 16


def run(rounds: int = 3) -> dict[str, Any]:
    """rounds: number of seeds to use."""
    from pipeline.stats import crossed_difference, mean

    base = Path(os.environ.get("RUN", "runs/real_compare"))
    finished = base / "compare" / "manifest.json"
    if not finished.is_file():
        print(f"RUN={base}: has no finished comparison; make compare CONFIG=configs/real/compare.yaml", file=sys.stderr)
        raise SystemExit(2)
    comparison = json.loads(finished.read_text())["metrics"]
    names = list(zip(comparison["seeds"], comparison["runs"], strict=True))[:rounds]
    judged: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    trained = []
    for seed, name in names:
        trl, ours = base / "trl" / f"seed-{seed}", base / name / "grpo"
        if not (trl / "figures.json").is_file():
            subprocess.run([sys.executable, "-m", "benchmarks.real_learn", str(base), str(seed), name], check=True)
        manifest = json.loads((ours / "manifest.json").read_text())
        trained.append({"seed": seed, "trl": json.loads((trl / "figures.json").read_text()),
                        "ours": {"tokens": manifest["tokens"]["completion"], "wall": manifest["wall_s"]}})  # fmt: skip
        models = {"start": base / "start" / "sft" / "model", "ours": ours / "model", "trl": trl / "model"}
        for side, values in judge(base, seed, models).items():
            judged[side].append(values)
        print(json.dumps(trained[-1] | {side: mean(rows[-1]) for side, rows in judged.items()}), flush=True)
    pairs = (("ours", "trl"), ("ours", "start"), ("trl", "start"))
    gaps = {f"{a}-{b}": crossed_difference(judged[a], judged[b], key=f"{a}-{b}") for a, b in pairs}
    return {
        "accuracy": {side: mean([mean(values) for values in rows]) for side, rows in judged.items()},
        "differences": {name: {"mean": d.mean, "low": d.low, "high": d.high, "p": d.p} for name, d in gaps.items()},
        "seeds": trained,
    }


def settings(base: Path, seed: int) -> dict[str, Any]:
    """The comparison's own config, as a run of one seed without the comparison's block."""
    from pipeline.config.yaml_reader import read_yaml

    raw = dict(read_yaml(ROOT / "configs" / "real" / "compare.yaml"))
    del raw["compare"]
    return raw | {"seed": seed, "runs_dir": str(base), "run": f"trl/judged-{seed}"}


def judge(base: Path, seed: int, models: dict[str, Path]) -> dict[str, list[float]]:
    """side -> share of right samples per held-out prompt, in one order."""
    paths = {side: str(path.resolve()) for side, path in models.items()}
    raw = settings(base, seed) | {"stages": ["evaluate"], "evaluate": {"policies": list(paths.values())}}
    raw["model"] = raw["model"] | {"path": paths["start"]}
    config = base / "trl" / f"judged-{seed}.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(raw))  # JSON is YAML
    subprocess.run([sys.executable, "-m", "pipeline", "evaluate", str(config)], check=True)
    right: dict[str, dict[str, list[bool]]] = {side: defaultdict(list) for side in models}
    side_of = {path: side for side, path in paths.items()}
    for line in (base / "trl" / f"judged-{seed}" / "evaluate" / "rollouts.jsonl").read_text().splitlines():
        row = json.loads(line)
        right[side_of[row["policy"]]][row["prompt"]].append(row["status"] == "pass")
    prompts = sorted(right["start"])
    return {side: [sum(by[p]) / len(by[p]) for p in prompts] for side, by in right.items()}


def train(base: Path, seed: int, name: str) -> None:
    """TRL's side of one seed, in this process; writes RUN/trl/seed-N/model and figures.json."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.measure import prepare_environment
    from benchmarks.trl_side import options
    from benchmarks.workload import Workload
    from pipeline.config.schema import Prompts
    from pipeline.data.prompts import load_rows
    from pipeline.models.precision import multiplies_bfloat16
    from verifiers import math_answer

    prepare_environment()
    torch.set_num_threads(os.cpu_count() or 1)
    raw, place = settings(base, seed), base / "trl" / f"seed-{seed}"
    grpo, start = raw["grpo"], base / "start" / "sft" / "model"
    budget = json.loads((base / name / "grpo" / "manifest.json").read_text())["tokens"]["completion"]
    work = Workload(
        prompts=grpo["prompts"], samples=grpo["samples"], max_tokens=raw["sampling"]["max_tokens"], steps=10_000,
        kl=0.0, learning_rate=grpo["optimizer"]["learning_rate"], micro_rows=MICRO_ROWS, seed=seed,
        dtype="bfloat16" if multiplies_bfloat16() else "float32",
    )  # fmt: skip
    spent: dict[str, float] = {"tokens": 0, "steps": 0}
    began = time.perf_counter()

    def reward(
        completions: list[Any], completion_ids: list[list[int]], gold: list[str], **_: Any
    ) -> list[float | None]:
        spent["tokens"] += sum(map(len, completion_ids))
        texts = [turns[0]["content"] for turns in completions]
        return [math_answer.verify(text, {"gold": g}).score for text, g in zip(texts, gold, strict=True)]

    class UpToBudget(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            spent["steps"] = state.global_step
            control.should_training_stop = spent["tokens"] >= budget
            left = (time.perf_counter() - began) * max(budget / spent["tokens"] - 1, 0)
            print(f"  trl seed {seed}: {spent['tokens']} of {budget} tokens, {left:.0f} s left", flush=True)

    source = Prompts(**{k: v for k, v in raw["prompts"].items() if k in ("procedural", "rows", "heldout")})
    rows = load_rows(source, seed=seed)
    columns = {"prompt": [[{"role": "user", "content": r["prompt"]}] for r in rows],
               "gold": [r["task"]["gold"] for r in rows]}  # fmt: skip
    make: Any = GRPOTrainer  # its stubs do not declare the columns that a reward function receives
    trainer = make(
        model=AutoModelForCausalLM.from_pretrained(start, dtype="float32"),
        reward_funcs=reward,
        args=GRPOConfig(**options(place, work, vllm=False)),
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(start),
        callbacks=[UpToBudget()],
    )
    trainer.train()
    trainer.model.save_pretrained(place / "model")
    trainer.processing_class.save_pretrained(place / "model")
    spent |= {"wall": time.perf_counter() - began, "cpu": time.process_time()}
    (place / "figures.json").write_text(json.dumps(spent))


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
