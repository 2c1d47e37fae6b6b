"""TRL's side of a step: stock TRL GRPOTrainer, with transformers generation or its own colocated vLLM.

Two things are changed, only here. On a CPU `sync_weights` crashes because vLLM has repacked its weights; they are
loaded with vLLM's `reload_weights` instead, the tied head under its own name too. The engine runs eagerly, as ours
does, because compiling for a CPU needs a C++ compiler. Phases come from TRL's own profiling contexts.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.extras.profiling import ProfilingContext
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from benchmarks.gate import Gate
from benchmarks.judge_path import judge
from benchmarks.workload import Workload


class Gated(TrainerCallback):
    """Waits at the gate at the start of each optimizer step, which in TRL begins with generation."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.gate.step()


def reload_weights(generation: VLLMGeneration) -> None:
    model = generation.model
    weights = dict(generation._iter_named_params())
    for tied, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        weights.setdefault(tied, weights[source])
    generation.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(list(weights.items()))})
    generation.llm.reset_prefix_cache()


def options(place: Path, work: Workload, *, vllm: bool) -> dict[str, Any]:
    """TRL's settings for the same step, in micro-batches of `micro_rows` rows."""
    micro_rows = work.micro_rows or work.rows
    return {
        "output_dir": str(place / "trl"),
        "use_cpu": True,
        "bf16": work.dtype == "bfloat16",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "max_steps": work.steps,
        "per_device_train_batch_size": micro_rows,
        "gradient_accumulation_steps": work.rows // micro_rows,
        "num_generations": work.samples,
        "max_completion_length": work.max_tokens,
        "temperature": 1.0,
        "beta": work.kl,
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "seed": work.seed,
        **({"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 1024} if vllm else {}),
    }


def train(place: Path, work: Workload, gate: Gate, *, vllm: bool) -> None:
    generation: Any = VLLMGeneration
    generation.sync_weights = reload_weights
    if vllm:
        library: Any = vllm_generation
        library.LLM = functools.partial(library.LLM, enforce_eager=True)

    def log_metrics(context: ProfilingContext, duration: float) -> None:
        gate.note(f"phase_{context.name}", duration)

    profiling: Any = ProfilingContext
    profiling._log_metrics = log_metrics
    trainer = make_trainer(place, work, gate, vllm=vllm)
    if work.judge_every:
        gate.judge, gate.every = (lambda: judge(place, trainer.model, work)), work.judge_every
    trainer.add_callback(Gated(gate))
    trainer.train()


def make_trainer(place: Path, work: Workload, gate: Gate | None = None, *, vllm: bool = False) -> GRPOTrainer:
    from datasets import Dataset

    import verifiers

    verify = verifiers.load(work.verifier, [str(place / "verifiers")]).module.verify

    def reward(completions: list[str], completion_ids: list[list[int]], task: list[str], **_: Any) -> list[float]:
        if gate is not None:
            gate.note("tokens", sum(map(len, completion_ids)))
            gate.note("longest", max(map(len, completion_ids)))
        return [verify(text, json.loads(t)).score for text, t in zip(completions, task, strict=True)]

    rows = [json.loads(line) for line in (place / "prompts.jsonl").read_text().splitlines()]
    columns = {"prompt": [r["prompt"] for r in rows], "task": [json.dumps(r["task"]) for r in rows]}
    model = AutoModelForCausalLM.from_pretrained(place / "model", dtype="float32")
    make: Any = GRPOTrainer  # its stubs do not declare the columns that a reward function receives
    return make(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(**options(place, work, vllm=vllm)),
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(place / "model"),
    )
