"""Estimate of a stage from its config and data: steps, samples, tokens, memory by part. No torch.

Counts of rows, steps and samples are exact. The mean length of a policy's samples is not known before training: it
comes from a run of the same stage on disk, else from the YAML's `expected_tokens`, else from the demonstrations. The
plan reports which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rewards
from pipeline.config.errors import LineageError
from pipeline.config.load import Config
from pipeline.config.schema import KINDS, Policy, trains_adapter
from pipeline.config.work import TRAINER_DEFAULTS, Data, Work
from pipeline.models.model_dir import activation_limit
from pipeline.plan.trial import Trial
from pipeline.run.manifest import read_manifest

# bytes per sample during sampling and scoring: 16,384 samples of 6 tokens took 465 MiB, mostly for vLLM's objects
REQUEST_VLLM, REQUEST = 28 << 10, 3 << 10
ADAPTER_SHARE = 0.02  # about as many parameters as this share of the model's


def work_of(cfg: Config, name: str, data: Data) -> Work:
    """The stage's own estimate; without figures if its kind has none. Never raises."""
    block = cfg.blocks[name]
    return block.work(name, cfg, data) if hasattr(block, "work") else Work(name, block.kind)


# --- lengths of answers ---------------------------------------------------------------------------------------------


def expect_lengths(cfg: Config, works: list[Work], data: Data, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Fill in mean_tokens and its source. known: stage -> manifest of a comparable stage."""
    mean = data.completion_tokens[0] if data.completion_tokens else cfg.sampling.max_tokens
    source = "demonstrations" if data.completion_tokens else "sampling.max_tokens, the most"
    for work in works:
        done, block = known.get(work.name), cfg.blocks[work.name]
        if done and "steps" in done["metrics"] and isinstance(block, Policy):
            work.steps = int(done["metrics"]["steps"])
            work.samples = work.steps * work.batch
        if done and work.samples and done["tokens"]["completion"]:
            sampled = done["tokens"]["completion"] / (1 + work.continued)
            work.mean_tokens, work.source = sampled / work.samples, "a run on disk"
        elif work.name in cfg.expected_tokens:
            work.mean_tokens, work.source = cfg.expected_tokens[work.name], "expected_tokens"
        elif work.kind == "base" and cfg.model.path is not None:  # not taught yet when an answer ends
            work.mean_tokens = float(cfg.sampling.max_tokens)
        else:
            turns = block.episodes.max_turns if isinstance(block, Policy) and block.episodes else 1
            work.mean_tokens, work.source = turns * float(min(mean, cfg.sampling.max_tokens)), source
        keep_to_budget(work, getattr(block, "token_budget", None), stops_within=isinstance(block, Policy))


def keep_to_budget(work: Work, budget: int | None, *, stops_within: bool) -> None:
    """Limit the estimate to the stage's token_budget; a policy stage stops after the step that reaches it."""
    if budget is None or work.tokens <= budget:
        return
    work.samples = math.ceil(budget / work.tokens_each)
    if stops_within:
        work.steps = math.ceil(work.samples / work.batch)
        work.samples = work.steps * work.batch


def like_it(cfg: Config, name: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of this stage in this run, or in a run next to it with the same settings and another seed."""
    run_dirs = [cfg.run_dir, *sorted(p for p in Path(cfg.runs_dir).glob("*") if p.is_dir() and p != cfg.run_dir)]
    for run_dir in run_dirs:
        try:
            manifest = read_manifest(run_dir / name / "manifest.json")
        except LineageError:
            continue
        same = manifest and {**manifest["config"], "seed": 0} == {**config, "seed": 0}
        if manifest and same:
            return manifest
    return None


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of a model: parameters, and the dimensions of its activations and cache."""

    parameters: int
    hidden: int
    layers: int
    kv_width: int  # key-value heads times head size
    vocabulary: int
    bytes_each: int
    embedding: int = 0
    """Parameters of the embedding and of the head, counted once where they are one tensor; 0: one tensor."""

    @property
    def body_share(self) -> float:
        """Cost of a token that only the layers compute, such as one of a prompt, as a share of one with the head."""
        head = self.hidden * self.vocabulary
        body = max(self.parameters - (self.embedding or head), 1)
        return body / (body + head)


@dataclass(slots=True)
class Memory:
    """Bytes by part; `libraries` is the process's memory before a model is loaded."""

    parts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def _asked_at_once(block: Any) -> int:
    """Number of samples that one call of the generator draws."""
    return int(getattr(block, "prompts", None) or 0) * int(getattr(block, "samples", None) or 0)


def in_4_bits(shape: Shape) -> int:
    """Bytes of a base model for QLoRA: 4 bits per weight plus 0.127 for the scales (arXiv:2305.14314 section 3); the
    embedding and the head, which may be one tensor, keep their precision."""
    kept = min(2 * shape.vocabulary * shape.hidden, shape.parameters)
    return round(kept * shape.bytes_each + (shape.parameters - kept) * 4.127 / 8)


def memory_of(cfg: Config, name: str, shape: Shape, data: Data, trial: Trial) -> Memory:
    """The stage's peak memory. A process keeps its generator through all stages, so each stage includes it."""
    block = cfg.blocks[name]
    weights = shape.parameters * shape.bytes_each
    at_once = max(data.heldout_prompts * cfg.evaluation.samples, _asked_at_once(block))
    parts = {"requests": round(at_once * (REQUEST_VLLM if trial.generator == "vllm" else REQUEST))}
    parts |= {"libraries": trial.libraries_bytes, "generator": trial.generator_bytes, "kv cache": trial.cache_bytes}
    length = data.prompt_tokens[2] + cfg.sampling.max_tokens
    adapted = trains_adapter(block)
    if KINDS[block.kind].trl_config or isinstance(block, Policy):
        # trained weights are float32 whatever the model's precision
        learning = round(shape.parameters * 4 * (ADAPTER_SHARE if adapted else 1.0))
        held = learning if not adapted else weights if cfg.model.quantization is None else in_4_bits(shape)
        parts |= {"weights": held, "gradients": learning, "optimizer": 2 * learning}
    if isinstance(block, Policy):
        if (block.kl.coef or block.kl.target) and not adapted:
            parts["reference"] = shape.parameters * 4 if block.kl.reference == "ema" else weights
        if block.critic is not None and not block.critic.shared:
            parts["critic"] = 4 * shape.parameters * 4
        if learned := rewards.learned_models(block.reward or {}):
            parts["reward model"] = weights * len(set(learned.values()))
        rows = min(block.tokens_per_microbatch, block.prompts * block.samples * length)
        parts["logits"] = 2**29 if trial.on_gpu else 2**24  # the head is applied in tiles: four in float32
        # per layer, in bytes per token and unit of width; checkpointing keeps each layer's input, and one full layer
        layers = shape.layers * 4 + 34 * 2 if block.gradient_checkpointing else shape.layers * 34 * 2
        activations = rows * shape.hidden * layers
        limited = not (trial.on_gpu or block.gradient_checkpointing)
        parts["activations"] = min(activations, activation_limit(shape.parameters)) if limited else activations
    elif "weights" in parts:
        batch = int({**TRAINER_DEFAULTS, **getattr(block, "trainer", {})}["per_device_train_batch_size"])
        parts["logits"] = 3 * batch * length * shape.vocabulary * 4
        parts["activations"] = batch * length * shape.hidden * shape.layers * 34 * 4 // 2
    return Memory(parts)
