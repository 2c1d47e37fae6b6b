"""What a stage will take, as each schema class estimates it: the records and the arithmetic they share. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config.load import Config

TRAINER_DEFAULTS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_train_epochs": 3.0}


@dataclass(frozen=True, slots=True)
class Data:
    """Counts of the run's prompts: rows, distinct prompts, and tokens as (mean, 95th percentile, longest)."""

    rows: int
    train_prompts: int
    heldout_prompts: int
    prompt_tokens: tuple[float, int, int]
    completion_tokens: tuple[float, int, int] | None
    dropped: float
    """Share of prompts over max_prompt_tokens."""
    truncated: float
    """Share of demonstrations longer than sampling.max_tokens."""
    validation_prompts: int = 0
    own_rows: Mapping[str, int] = field(default_factory=dict)
    """Stage -> rows of its own `data:`."""
    pool_rows: Mapping[str, int] = field(default_factory=dict)
    """Stage -> scored samples in the files and finished stages of its `pool:`."""


@dataclass(slots=True)
class Work:
    """One stage's work."""

    name: str
    kind: str
    rows: int = 0
    steps: int = 0
    batch: int = 0
    """Rows per step."""
    samples: int = 0
    """Completions sampled from the policy by the method itself."""
    judged: int = 0
    """Completions sampled on held-out prompts and for controls."""
    reread: int = 0
    """Samples that are read once more by a model to measure them: by the policy and its start for a KL, or by a reward
    model for its offset."""
    mean_tokens: float = 0.0
    """Tokens of one sample, an episode's turns together."""
    source: str = ""
    """Where mean_tokens comes from."""
    at_most: bool = False
    """Steps or samples may be fewer."""
    passes: float = 1.0
    """Forward and backward passes over each sampled row."""
    continued: float = 0.0
    """Tokens sampled as continuations of partial samples, as a share of the samples' own."""
    label_tokens: int = 0
    """Tokens of the condition label in front of each prompt."""
    likely: float = 1.0
    """Share of the most steps that the stage is likely to take, where the data decide."""
    sequences_per_row: int = 1
    trainings: int = 1
    """Models that the stage trains one after the other, where it takes steps at all."""
    loads: int = 0
    """Policies that are loaded into the generator only to be evaluated."""

    @property
    def tokens(self) -> int:
        return round(self.samples * self.tokens_each)

    @property
    def tokens_each(self) -> float:
        return self.mean_tokens * (1 + self.continued)


def evaluation_samples(cfg: Config, data: Data) -> int:
    """Completions of one evaluation pass over the held-out prompts."""
    return data.heldout_prompts * cfg.evaluation.samples


def trained_steps(trainer: Mapping[str, Any], rows: int) -> tuple[int, int]:
    """(rows per step, steps) of a `trainer:` block over so many rows."""
    given = {**TRAINER_DEFAULTS, **trainer}
    batch = int(given["per_device_train_batch_size"]) * int(given["gradient_accumulation_steps"])
    if int(given.get("max_steps") or -1) > 0:
        return batch, int(given["max_steps"])
    return batch, math.ceil(math.ceil(rows / batch) * float(given["num_train_epochs"]))
