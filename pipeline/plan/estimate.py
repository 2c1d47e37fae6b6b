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

from pipeline.config.load import Config
from pipeline.config.schema import Policy, trains_adapter
from pipeline.plan.trial import Trial
from pipeline.run.stage_dir import LineageError, read_manifest

# bytes a sample takes while it is drawn and scored: 16,384 of 6 tokens took 465 MiB, most of it vLLM's objects
REQUEST_VLLM, REQUEST = 28 << 10, 3 << 10
TRAINER_DEFAULTS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_train_epochs": 3.0}


@dataclass(frozen=True, slots=True)
class Data:
    """Of the run's prompts: rows, distinct prompts, and tokens (mean, 95th percentile, longest)."""

    rows: int
    train_prompts: int
    heldout_prompts: int
    prompt_tokens: tuple[float, int, int]
    completion_tokens: tuple[float, int, int] | None
    dropped: float  # share of prompts over max_prompt_tokens
    cut: float  # share of demonstrations longer than sampling.max_tokens
    own_rows: Mapping[str, int] = field(default_factory=dict)  # stage -> rows of a `data:` of its own


@dataclass(slots=True)
class Work:
    """One stage's work. samples: of the policy, the method's own; judged: on held-out prompts and for controls."""

    name: str
    kind: str
    rows: int = 0
    steps: int = 0
    batch: int = 0  # rows a step
    samples: int = 0
    judged: int = 0
    mean_tokens: float = 0.0  # of a sample, an episode's turns together
    source: str = ""  # where mean_tokens is from
    at_most: bool = False  # steps or samples may be fewer
    passes: float = 1.0  # forward and backward passes over each sampled row
    continued: float = 0.0  # tokens sampled on from the midst of a sample, over its own
    label_tokens: int = 0  # in front of each prompt

    @property
    def tokens(self) -> int:
        return round(self.samples * self.tokens_each)

    @property
    def tokens_each(self) -> float:
        return self.mean_tokens * (1 + self.continued)


def work_of(cfg: Config, name: str, data: Data) -> Work:
    """Raises nothing: a kind that is not counted here has no figures."""
    block = cfg.blocks[name]
    work = Work(name, block.kind)
    judged = data.heldout_prompts * cfg.evaluation.samples
    if block.kind in ("base", "sft"):
        work.judged = judged
    if block.kind == "sft":
        work.rows = data.own_rows.get(name, data.rows)
        work.batch, work.steps = trained_steps(block.trainer, work.rows)
    elif block.kind == "feedme":
        work.samples = block.rounds * block.prompts * block.samples
        chains = 1 + bool(block.random_control)
        work.judged = judged * (block.rounds * chains + bool(block.more_sft_control)) + (chains - 1) * work.samples
        work.batch, each = trained_steps(block.trainer, block.prompts * block.samples)
        work.steps = each * block.rounds * (chains + bool(block.more_sft_control))
        work.at_most = "max_steps" not in block.trainer
    elif block.kind == "reward_model":
        work.samples = 0 if block.data else block.prompts * block.samples
        work.judged = min(block.heldout_prompts, data.heldout_prompts) * block.samples
        asked = min(block.prompts, data.train_prompts)  # a prompt that is asked twice makes its pairs once
        pairs = data.own_rows.get(name, int(asked * block.pairs_per_prompt * (1 + block.corrupted)))
        work.batch, work.steps = trained_steps(block.trainer, pairs)
        work.at_most = "max_steps" not in block.trainer
    elif isinstance(block, Policy):
        refills = block.groups.refill_cap if block.groups.dynamic else 1
        work.steps, work.batch = block.steps, block.prompts * block.samples
        work.samples, work.judged, work.at_most = work.steps * work.batch * refills, judged, refills > 1
        work.passes = block.epochs
        if block.credit.kind == "monte_carlo":  # from points spread evenly half of an answer is left, on the mean
            starts = 1 if block.samples == 1 else 0
            work.continued = block.credit.continuations * (block.credit.points / 2 + starts)
    elif block.kind == "conditioned":
        work.samples = 0 if block.pool else block.prompts * block.samples * (1 + block.online_rounds)
        bins = len(block.edges) + 1 if block.bins == "edges" else block.count
        chains = 1 + block.online_rounds + bool(block.shuffled_control)
        work.judged = judged * (bins + 1) * (1 + bool(block.shuffled_control))
        work.batch, each = trained_steps(block.trainer, block.per_bin * bins)
        work.steps, work.rows = each * chains, block.demonstrations
    elif block.kind == "offline_q":
        work.samples, work.judged = 0 if block.pool else block.prompts * block.samples, judged
        work.batch, work.steps = block.batch, block.value_steps + block.policy_steps * (block.extract == "awr")
    elif block.kind == "judge":
        work.judged = judged * (1 + len(block.methods))
    elif block.kind == "stitch":
        from verifiers import stitch

        turns = sum(len(walk) for walk in stitch.logs(block.medium))
        runs = len(block.seeds) * len(block.memories)
        work.rows, work.steps, work.batch = turns, block.loop.steps * runs, block.loop.prompts * block.loop.samples
        work.at_most = True
    elif block.kind == "evaluate":
        before = [n for n in cfg.stages if cfg.blocks[n].kind not in ("reward_model", "evaluate")]
        work.judged = judged * len(block.policies or before)
    return work


def trained_steps(trainer: Mapping[str, Any], rows: int) -> tuple[int, int]:
    """(rows a step, steps) of a `trainer:` block over so many rows."""
    given = {**TRAINER_DEFAULTS, **trainer}
    batch = int(given["per_device_train_batch_size"]) * int(given["gradient_accumulation_steps"])
    if int(given.get("max_steps") or -1) > 0:
        return batch, int(given["max_steps"])
    return batch, math.ceil(math.ceil(rows / batch) * float(given["num_train_epochs"]))


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
        keep_to_budget(work, getattr(block, "token_budget", None))
        if every := getattr(block, "evaluate_every", None):
            work.judged *= 1 + work.steps // every


def keep_to_budget(work: Work, budget: int | None) -> None:
    """A stage with a token_budget samples up to it, and a policy stage stops with the step that reaches it."""
    if budget is None or work.tokens <= budget:
        return
    work.samples = math.ceil(budget / work.tokens_each)
    if work.kind in ("ppo", "grpo"):
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
    if block.kind in ("sft", "feedme", "reward_model", "conditioned") or isinstance(block, Policy):
        # what learns is float32 whatever the model's precision; an adapter's share of the parameters is about 2%
        learning = round(shape.parameters * 4 * (0.02 if adapted else 1.0))
        held = learning if not adapted else weights if cfg.model.quantization is None else in_4_bits(shape)
        parts |= {"weights": held, "gradients": learning, "optimizer": 2 * learning}
    if isinstance(block, Policy):
        if (block.kl.coef or block.kl.target) and not adapted:
            parts["reference"] = shape.parameters * 4 if block.kl.reference == "ema" else weights
        if block.critic is not None and not block.critic.shared:
            parts["critic"] = 4 * shape.parameters * 4
        if block.reward and any(part == "reward_model" for part in block.reward):
            parts["reward model"] = weights
        rows = min(block.tokens_per_microbatch, block.prompts * block.samples * length)
        parts["logits"] = 2 * 256 * shape.vocabulary * 4  # the head is applied in chunks
        # of a layer, in bytes a token and unit of width; checkpointing keeps what goes into each, and one whole
        layers = shape.layers * 4 + 34 * 2 if block.gradient_checkpointing else shape.layers * 34 * 2
        parts["activations"] = rows * shape.hidden * layers
    elif "weights" in parts:
        batch = int({**TRAINER_DEFAULTS, **block.trainer}["per_device_train_batch_size"])
        parts["logits"] = 3 * batch * length * shape.vocabulary * 4
        parts["activations"] = batch * length * shape.hidden * shape.layers * 34 * 4 // 2
    return Memory(parts)
