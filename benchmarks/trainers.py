"""Overhead of our sft and reward_model stages over TRL's SFTTrainer and RewardTrainer alone, on the same rows.

Both sides train on the same tokens for the same number of steps, load the model before and save it after. Ours also
renders, logs to its own files, hashes its outputs and keeps checkpoints that resume bit for bit. One turn is a full run
of a side.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.measure import in_turns
from benchmarks.workload import CHARACTERS, Workload, lay_out

WORK = Workload(hidden_size=128, intermediate_size=384)
ROWS, STEPS, BATCH = 2048, 60, 32
TRAINER = {
    "max_steps": STEPS, "per_device_train_batch_size": BATCH, "learning_rate": 1e-4, "logging_steps": 10,
}  # fmt: skip
BARE = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False}


def run(rounds: int = 3) -> dict[str, Any]:
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lay_out(place, WORK)
        write_rows(place)
        os.chdir(place)  # runs/ of our stages is created there
        try:
            sft = in_turns({"ours": SftSide(place), "trl": BareSft(place)}, rounds=rounds)
            reward = in_turns({"ours": Reward(place), "trl": BareReward(place)}, rounds=rounds)
        finally:
            os.chdir(home)
    pairs = {"sft": sft, "reward_model": reward}
    return {
        "ratios": {f"{name}_vs_trl": spent["trl"]["cpu"] / spent["ours"]["cpu"] for name, spent in pairs.items()},
        "wall_ratios": {name: spent["trl"]["wall"] / spent["ours"]["wall"] for name, spent in pairs.items()},
        "seconds": pairs,
        "steps": STEPS,
        "rounds": rounds,
    }


def write_rows(place: Path) -> None:
    """Write demonstrations, and pairs of a chosen and a rejected completion."""
    random = Random(WORK.seed)

    def text(low: int, high: int) -> str:
        return "".join(random.choices(CHARACTERS[:60], k=random.randint(low, high)))

    rows = []
    for _ in range(ROWS):
        good = text(20, 90)
        rows.append({"prompt": text(10, 20), "completion": good, "chosen": good, "rejected": text(20, 90), "task": {}})
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(place: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]


class Ours:
    """A stage's training only: no evaluation, which TRL does not do either."""

    def __init__(self, place: Path) -> None:
        self.place, self.turn = place, 0

    def context(self, name: str) -> Any:
        from pipeline.config import load
        from pipeline.run.stage_dir import StageDir
        from pipeline.stages.context import Context

        self.turn += 1
        settings = json.loads((self.place / "ours.yaml").read_text())
        rows = {"path": str(self.place / "rows.jsonl"), "heldout": 0.0}
        block = {"policy": "model", "trainer": TRAINER, "data": rows}
        settings |= {"run": f"{name}-{self.turn}", "stages": [name], name: block}
        path = self.place / f"{name}.yaml"
        path.write_text(json.dumps(settings))
        cfg = load.load(path)
        ctx = Context(cfg, name, StageDir(cfg.run_dir, name))
        ctx.dir.open({"config": {}, "code": "benchmark"})
        return ctx


class SftSide(Ours):
    def __call__(self) -> None:
        from pipeline.stages import sft

        ctx = self.context("sft")
        examples = sft.encode(ctx.rows_of(ctx.block.data, "sft.data").train, ctx.block.data, ctx)
        sft.train(ctx, ctx.policy_path, examples, ctx.dir.model_dir, ctx.block.trainer, key=("sft",))


class Reward(Ours):
    def __call__(self) -> None:
        from datasets import Dataset
        from trl import RewardConfig, RewardTrainer

        from pipeline.models import models
        from pipeline.stages import reward_model
        from pipeline.stages.trl_trainer import train_with

        ctx = self.context("reward_model")
        pairs, _, _ = reward_model.pairs_from_rows(ctx)
        columns = {"chosen_ids": [[*p, *c] for p, c, _ in pairs], "rejected_ids": [[*p, *r] for p, _, r in pairs]}
        data = Dataset.from_dict(columns)

        def load() -> Any:
            return models.load_reward_model(ctx.policy_path, ctx.cfg.model).train()

        reward_model.distinct_pad(ctx.tokenizer)
        train_with(ctx, RewardTrainer, RewardConfig, ctx.policy_path, load, {"train_dataset": data},
                   ctx.block.trainer, target=ctx.dir.model_dir, key=("reward",))  # fmt: skip


class Bare:
    """The trainer, used as in its documentation."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def settings(self, name: str) -> dict[str, Any]:
        return {"output_dir": str(self.place / f"bare-{name}"), "save_strategy": "no", **BARE, **TRAINER}

    def finish(self, trainer: Any, name: str) -> None:
        trainer.train()
        trainer.save_model(str(self.place / f"bare-{name}" / "model"))


class BareSft(Bare):
    def __call__(self) -> None:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        rows = [{"prompt": r["prompt"], "completion": r["completion"]} for r in rows_of(self.place)]
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(self.place / "model", dtype="float32"),
            args=SFTConfig(**self.settings("sft")),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(self.place / "model"),
        )
        self.finish(trainer, "sft")


class BareReward(Bare):
    def __call__(self) -> None:
        from datasets import Dataset
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from trl import RewardConfig, RewardTrainer

        rows = [{name: r[name] for name in ("prompt", "chosen", "rejected")} for r in rows_of(self.place)]
        model = AutoModelForSequenceClassification.from_pretrained(self.place / "model", dtype="float32", num_labels=1)
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(**self.settings("reward")),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(self.place / "model"),
        )
        self.finish(trainer, "reward")
