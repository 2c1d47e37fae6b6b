"""What a stage will take, counted from its config and its data: steps, samples, tokens, memory by part. No torch.

Counts of rows, steps and samples are exact. The mean length of what a policy will sample is not known before it is
trained: it comes from a run of the same stage on disk, else from the YAML's `expected_tokens`, else from the
demonstrations, and the plan says which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rewards
from pipeline.config.load import Config
from pipeline.config.schema import KINDS, Policy, trains_adapter
from pipeline.config.work import TRAINER_DEFAULTS, Data, Work
from pipeline.plan.trial import Trial
from pipeline.run.errors import LineageError
from pipeline.run.manifest import read_manifest

# bytes a sample takes while it is drawn and scored: 16,384 of 6 tokens took 465 MiB, most of it vLLM's objects
REQUEST_VLLM, REQUEST = 28 << 10, 3 << 10


def work_of(cfg: Config, name: str, data: Data) -> Work:
    """The stage's own estimate; a kind without one has no figures. Raises nothing."""
    block = cfg.blocks[name]
    return block.work(name, cfg, data) if hasattr(block, "work") else Work(name, block.kind)


# --- how long answers are -------------------------------------------------------------------------------------------


def expect_lengths(cfg: Config, works: list[Work], data: Data, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Fill mean_tokens and its source. known: stage -> manifest of a stage like it."""
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
        else:
            turns = block.episodes.max_turns if isinstance(block, Policy) and block.episodes else 1
            work.mean_tokens, work.source = turns * float(min(mean, cfg.sampling.max_tokens)), source
        keep_to_budget(work, getattr(block, "token_budget", None), stops_within=isinstance(block, Policy))
        if every := getattr(block, "evaluate_every", None):
            work.judged *= 1 + work.steps // every


def keep_to_budget(work: Work, budget: int | None, *, stops_within: bool) -> None:
    """A stage with a token_budget samples up to it, and a policy stage stops with the step that reaches it."""
    if budget is None or work.tokens <= budget:
        return
    work.samples = math.ceil(budget / work.tokens_each)
    if stops_within:
        work.steps = math.ceil(work.samples / work.batch)
        work.samples = work.steps * work.batch


def like_it(cfg: Config, name: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of this stage in this run, or in another run beside it under the same settings and another seed."""
    places = [cfg.run_dir, *sorted(p for p in Path(cfg.runs_dir).glob("*") if p.is_dir() and p != cfg.run_dir)]
    for place in places:
        try:
            manifest = read_manifest(place / name / "manifest.json")
        except LineageError:
            continue
        same = manifest and {**manifest["config"], "seed": 0} == {**config, "seed": 0}
        if manifest and same:
            return manifest
    return None


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a model: parameters, and what its activations and its cache are made of."""

    parameters: int
    hidden: int
    layers: int
    kv_width: int  # key-value heads times head size
    vocabulary: int
    bytes_each: int


@dataclass(slots=True)
class Memory:
    """Bytes by part; `libraries` is what the process takes before any of it."""

    parts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def _asked_at_once(block: Any) -> int:
    """Samples that one call of the generator draws."""
    return int(getattr(block, "prompts", None) or 0) * int(getattr(block, "samples", None) or 0)


def in_4_bits(shape: Shape) -> int:
    """Bytes of a base kept for QLoRA: 4 bits a weight and 0.127 for their scales (arXiv:2305.14314 section 3); the
    embedding and the head, which may be one tensor, keep their precision."""
    kept = min(2 * shape.vocabulary * shape.hidden, shape.parameters)
    return round(kept * shape.bytes_each + (shape.parameters - kept) * 4.127 / 8)


def memory_of(cfg: Config, name: str, shape: Shape, data: Data, trial: Trial) -> Memory:
    """The stage's peak. One process keeps its generator through all stages, so its part stands in each."""
    block = cfg.blocks[name]
    weights = shape.parameters * shape.bytes_each
    at_once = max(data.heldout_prompts * cfg.evaluation.samples, _asked_at_once(block))
    parts = {"requests": round(at_once * (REQUEST_VLLM if trial.generator == "vllm" else REQUEST))}
    parts |= {"libraries": trial.libraries_bytes, "generator": trial.generator_bytes, "kv cache": trial.cache_bytes}
    length = data.prompt_tokens[2] + cfg.sampling.max_tokens
    adapted = trains_adapter(block)
    if KINDS[block.kind].trl_config or isinstance(block, Policy):
        # what learns is float32 whatever the model's precision; an adapter's share of the parameters is about 2%
        learning = round(shape.parameters * 4 * (0.02 if adapted else 1.0))
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
        parts["logits"] = 2 * 256 * shape.vocabulary * 4  # the head is applied in chunks
        # of a layer, in bytes a token and unit of width; checkpointing keeps what goes into each, and one whole
        layers = shape.layers * 4 + 34 * 2 if block.gradient_checkpointing else shape.layers * 34 * 2
        parts["activations"] = rows * shape.hidden * layers
    elif "weights" in parts:
        batch = int({**TRAINER_DEFAULTS, **getattr(block, "trainer", {})}["per_device_train_batch_size"])
        parts["logits"] = 3 * batch * length * shape.vocabulary * 4
        parts["activations"] = batch * length * shape.hidden * shape.layers * 34 * 4 // 2
    return Memory(parts)
