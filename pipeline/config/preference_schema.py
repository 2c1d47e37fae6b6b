"""Blocks of the stages that train a policy on preferences directly: dpo and kto."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipeline.config.alarm_config import STRICT, Positive
from pipeline.config.registry import stage_kind
from pipeline.config.run_schema import Prompts
from pipeline.config.work import Data, Work, evaluation_samples, trained_steps

if TYPE_CHECKING:
    from pipeline.config.load import Config


@dataclass(slots=True)
class Preference:
    """What dpo and kto share: a model to start from, scored samples or a file, TRL's trainer, rounds."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = ""
    """Kind of the stage; needed only in a block that has another name."""
    policy: str = "sft"
    """Stage or model to start from; it is the reference too."""
    data: Prompts | None = None
    """Preference data set; null makes preferences from scored samples."""
    pool: list[str] | None = None
    """Stages or files of scored samples to use; null samples new ones."""
    reward: dict[str, dict[str, Any]] | None = None
    """Rewards that order the samples, parts as in `rewards`; null takes the run's."""
    rounds: Positive = 1
    """Rounds of sampling and training; more than one is the online form of the method."""
    keep: Literal["last", "best"] = "last"
    """Round whose model is kept: the last, or the best by prompts.validation."""
    reference: Literal["start", "last"] = "start"
    """Reference of later rounds: the stage's start, or the model that the round begins with."""
    prompts: Positive = 1024
    """Prompts per round."""
    samples: Positive = 8
    """Completions per prompt."""
    token_budget: Positive | None = None
    """Most completion tokens to sample, the same share each round."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of TRL's trainer for each round."""
    peft: dict[str, Any] | None = None
    """Arguments of PEFT's LoraConfig; null trains all weights."""

    def rows_per_prompt(self) -> int:
        """Training rows that one prompt's samples give at the most."""
        return self.samples

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        given = self.data or self.pool
        out = Work(name, self.kind, samples=0 if given else self.rounds * self.prompts * self.samples)
        distinct = min(self.prompts, data.train_prompts)
        rows = data.own_rows.get(name, distinct * self.rows_per_prompt())
        out.batch, steps = trained_steps(self.trainer, rows)
        out.trainings = self.rounds
        out.steps, out.likely = steps * self.rounds, 0.8
        validation = data.validation_prompts * cfg.evaluation.samples * (self.keep == "best")
        out.judged = (evaluation_samples(cfg, data) + validation) * self.rounds
        out.reread = evaluation_samples(cfg, data) * self.rounds
        out.at_most = "max_steps" not in self.trainer
        return out


@stage_kind(
    "pipeline.stages.dpo",
    summary="direct preference optimisation on pairs of better and worse answers",
    order=42,
    makes_policy=True,
    samples=True,
    trl_config="trl.trainer.dpo_config:DPOConfig",
    reads_pairs=True,
)
@dataclass(slots=True)
class Dpo(Preference):
    """Direct preference optimisation (arXiv:2305.18290) with TRL's DPOTrainer."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "dpo"
    """Kind of the stage; needed only in a block that has another name."""
    pairs_per_prompt: Positive = 4
    """Most pairs made of one prompt's samples, the widest gaps of reward first."""

    def rows_per_prompt(self) -> int:
        return self.pairs_per_prompt

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        out = Preference.work(self, name, cfg, data)
        out.sequences_per_row = 2
        return out


@stage_kind(
    "pipeline.stages.kto",
    summary="preference optimisation on answers labelled good or bad, one by one",
    order=43,
    makes_policy=True,
    samples=True,
    trl_config="trl.trainer.kto_config:KTOConfig",
)
@dataclass(slots=True)
class Kto(Preference):
    """Kahneman-Tversky optimisation (arXiv:2402.01306) with TRL's KTOTrainer."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "kto"
    """Kind of the stage; needed only in a block that has another name."""
    at_least: float | None = None
    """Reward from which a sample is labelled good; null takes what the verifier passes."""
