"""Blocks of the stages besides policy optimisation, each with its estimate of work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.alarm_config import STRICT, NonNegative, Positive, Share
from pipeline.config.registry import policies_before, stage_kind
from pipeline.config.run_schema import Prompts, Tiny
from pipeline.config.work import Data, Work, evaluation_samples, trained_steps

if TYPE_CHECKING:
    from pipeline.config.load import Config

SFT_CONFIG = "trl.trainer.sft_config:SFTConfig"


@stage_kind(
    "pipeline.stages.base",
    summary="make or load the base model and evaluate it",
    order=0,
    makes_policy=True,
    several_processes=True,
)
@dataclass(slots=True)
class Base:
    """The model that everything starts from, loaded or made as the block `model` says."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "base"
    """Kind of the stage; needed only in a block that has another name."""
    tiny: Tiny | None = None
    """Another tiny model than the run's, such as a larger teacher; with the same characters. Null takes model.tiny."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        return Work(name, self.kind, judged=evaluation_samples(cfg, data))


@stage_kind(
    "pipeline.stages.sft",
    summary="supervised fine-tuning on demonstrations",
    order=10,
    makes_policy=True,
    trl_config=SFT_CONFIG,
    several_processes=True,
    may_be_start=True,
)
@dataclass(slots=True)
class Sft:
    """Supervised fine-tuning on demonstrations."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "sft"
    """Kind of the stage; needed only in a block that has another name."""
    policy: str = "base"
    """Stage or model to start from."""
    data: Prompts | None = None
    """Demonstrations; null takes the run's own prompts and completions."""
    min_reward: float | None = None
    """Keep only demonstrations that the run's rewards score at least this high."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of TRL's SFTConfig, such as {max_steps: 500, learning_rate: 1e-5}."""
    peft: dict[str, Any] | None = None
    """Arguments of PEFT's LoraConfig, such as {r: 16, target_modules: all-linear}; null trains all weights."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        rows = data.own_rows.get(name, data.rows)
        batch, steps = trained_steps(self.trainer, rows)
        return Work(name, self.kind, rows=rows, batch=batch, steps=steps, judged=evaluation_samples(cfg, data))


@dataclass(slots=True)
class Stop:
    """When FeedME's rounds end early; the best round's model is kept.

    The best on the validation prompts where prompts.validation gives any, else on the held-out ones.
    """

    __pydantic_config__: ClassVar = STRICT
    patience: Positive = 1
    """Rounds without a gain after which FeedME stops."""
    min_gain: NonNegative = 0.0
    """Rise of accuracy that counts as a gain."""
    min_distinct: NonNegative = 0.0
    """Stop when fewer distinct answers per prompt are left."""


@stage_kind(
    "pipeline.stages.feedme",
    summary="fine-tune on the best of the model's own samples, round after round",
    order=20,
    makes_policy=True,
    samples=True,
    trl_config=SFT_CONFIG,
    several_processes=True,
    may_be_start=True,
)
@dataclass(slots=True)
class Feedme:
    """FeedME: sample, score, keep the best, fine-tune on them, and repeat."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "feedme"
    """Kind of the stage; needed only in a block that has another name."""
    policy: str = "sft"
    """Stage or model to start from."""
    reward: dict[str, dict[str, Any]] | None = None
    """Rewards that the filters use, parts as in `rewards`; null takes the run's."""
    rounds: Positive = 2
    """Rounds of sampling, filtering and fine-tuning."""
    prompts: Positive = 1024
    """Prompts per round."""
    samples: Positive = 8
    """Completions per prompt."""
    token_budget: Positive | None = None
    """Most completion tokens to sample, the same share each round; prompts is then an upper limit."""
    filters: list[str | dict[str, Any]] = field(default_factory=lambda: [{"threshold": 1.0}, "dedup", {"cap": 4}])
    """Filters that choose the samples to train on, applied in this order."""
    start: Literal["last", "base"] = "last"
    """Model that each round trains: the last round's, or the stage's start."""
    data: Literal["replace", "accumulate"] = "replace"
    """Whether a round trains on its own samples, or on those of all rounds so far."""
    pool: list[str] | None = None
    """Stages or files of scored samples to use in place of sampling, human ratings too."""
    sft_share: Share = 0.0
    """Share of demonstrations mixed into each round's training data."""
    stop: Stop | None = None
    """When to stop before the last round; null runs all rounds."""
    keep: Literal["last", "best"] = "last"
    """Round whose model is kept: the last, or the best by prompts.validation; `stop` keeps the best in any case."""
    random_control: bool = True
    """Whether the same rounds are run again with as many samples per prompt chosen at random."""
    more_sft_control: bool = True
    """Whether as many more steps on the demonstrations are run for comparison, if the rows have any."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of TRL's SFTConfig for each round."""
    peft: dict[str, Any] | None = None
    """Arguments of PEFT's LoraConfig; null trains all weights."""

    @property
    def chooses(self) -> bool:
        """Whether the model of an earlier round than the last may be kept."""
        return self.keep == "best" or self.stop is not None

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        per_round = data.pool_rows.get(name, 0) or self.prompts * self.samples
        out = Work(name, self.kind, samples=0 if self.pool else self.rounds * per_round, likely=0.4)
        chains = 1 + bool(self.random_control)
        out.judged = evaluation_samples(cfg, data) * (self.rounds * chains + bool(self.more_sft_control))
        out.reread = evaluation_samples(cfg, data) * self.rounds
        out.judged += data.validation_prompts * cfg.evaluation.samples * self.rounds * self.chooses
        out.judged += (chains - 1) * out.samples
        out.batch, each = trained_steps(self.trainer, per_round)
        out.trainings = self.rounds * (chains + bool(self.more_sft_control))
        out.steps = each * out.trainings
        out.at_most = "max_steps" not in self.trainer
        return out


@stage_kind(
    "pipeline.stages.reward_model",
    summary="train a reward model on preference pairs",
    order=30,
    samples=True,
    trl_config="trl.trainer.reward_config:RewardConfig",
    reads_pairs=True,
    several_processes=True,
)
@dataclass(slots=True)
class RewardModel:
    """A reward model trained on preference pairs, from a data set or from scored samples."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "reward_model"
    """Kind of the stage; needed only in a block that has another name."""
    policy: str = "sft"
    """Stage or model whose samples are paired."""
    init: str | None = None
    """Stage or model that the reward model is initialised from; null takes the policy."""
    data: Prompts | None = None
    """Preference data set with the columns chosen and rejected; null makes pairs from scored samples."""
    pool: list[str] | None = None
    """Stages or files of scored samples to make pairs from; null samples new ones."""
    prompts: Positive = 2048
    """Prompts to sample for pairs."""
    samples: Positive = 8
    """Completions per prompt."""
    token_budget: Positive | None = None
    """Most completion tokens to sample."""
    pairs_per_prompt: Positive = 4
    """Most pairs made of one prompt's samples."""
    corrupted: NonNegative = 1.0
    """Corrupted negatives (truncated, replaced, appended) per sampled pair."""
    heldout_prompts: Positive = 512
    """Held-out prompts whose pairs measure the accuracy."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of TRL's RewardConfig."""
    peft: dict[str, Any] | None = None
    """Arguments of PEFT's LoraConfig; null trains all weights."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        out = Work(name, self.kind, samples=0 if self.data or self.pool else self.prompts * self.samples)
        out.likely, out.sequences_per_row = 0.95, 2
        out.judged = min(self.heldout_prompts, data.heldout_prompts) * self.samples
        out.reread = min(out.samples, 2048)
        distinct = min(self.prompts, data.train_prompts)  # a prompt that is sampled twice makes its pairs once
        pairs = data.own_rows.get(name, int(distinct * self.pairs_per_prompt * (1 + self.corrupted)))
        out.batch, out.steps = trained_steps(self.trainer, pairs)
        out.at_most = "max_steps" not in self.trainer
        return out


@dataclass(slots=True)
class Attribute:
    """One property that a condition label states, its bins and its text."""

    __pydantic_config__: ClassVar = STRICT
    of: str = "reward"
    """What is measured: reward, correct, length, format, or a part of the rewards by its name."""
    label: str = "<{bin}> "
    """Text of the label; {bin} is the bin's number."""
    bins: Literal["quantile", "edges"] = "edges"
    """Whether bins are quantiles of the pool or lie between the given edges."""
    count: Positive = 5
    """Number of quantile bins."""
    edges: list[float] = field(default_factory=lambda: [0.5])
    """Rising limits between bins."""
    words: list[str] = field(default_factory=list)
    """What a label says in place of the bin's number, one per bin, such as [short, long]; empty shows the number."""
    per_prompt: bool = False
    """Whether values are measured from the mean of the prompt's own samples."""
    prefer: Literal["high", "low"] = "high"
    """Which end the label `best` asks for."""


@stage_kind(
    "pipeline.stages.conditioned",
    summary="train on every sample under a label of its reward, ask for the best",
    order=60,
    makes_policy=True,
    samples=True,
    trl_config=SFT_CONFIG,
    several_processes=True,
    may_be_start=True,
)
@dataclass(slots=True)
class Conditioned:
    """Condition tokens: train on every sample under a label of its reward, then ask for the best label."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "conditioned"
    """Kind of the stage; needed only in a block that has another name."""
    policy: str = "sft"
    """Stage or model to start from."""
    prompts: Positive = 2048
    """Prompts to sample for the pool."""
    samples: Positive = 8
    """Completions per prompt."""
    token_budget: Positive | None = None
    """Most completion tokens to sample."""
    pool: list[str] | None = None
    """Stages or files of scored samples to use in place of sampling, human ratings too."""
    bins: Literal["quantile", "edges"] = "edges"
    """Whether bins of the reward are quantiles of the pool or lie between the given edges."""
    count: Positive = 5
    """Number of quantile bins."""
    edges: list[float] = field(default_factory=lambda: [0.125, 0.375, 0.625, 0.875])
    """Rising limits between bins of the reward."""
    label: str = "<{bin}> "
    """Text in front of the prompt; {bin} is the bin's number."""
    attributes: dict[str, Attribute] = field(default_factory=dict)
    """Several labels at once, by name; empty labels the reward alone."""
    vocabulary: Literal["text", "special"] = "text"
    """Whether labels are plain text or new tokens; new tokens need full fine-tuning or trained embeddings."""
    per_bin: Positive = 4000
    """Most training rows per bin."""
    kl_coef: NonNegative = 0.0
    """Weight of the KL from the policy to its start on unlabelled prompts."""
    guidance: NonNegative = 1.0
    """Weight of labelled over unlabelled logits when sampling under a label; 1 is none."""
    label_dropout: Share = 0.1
    """Share of training rows without their label."""
    demonstrations: Annotated[int, Field(ge=0)] = 0
    """SFT rows that are scored and added to the pool."""
    online_rounds: Annotated[int, Field(ge=0)] = 0
    """Further rounds: sample under the best label, relabel by the reward, train again."""
    online_trainer: dict[str, Any] = field(default_factory=dict)
    """Keys of trainer that the online rounds change."""
    shuffled_control: bool = True
    """Whether the same training is run again with shuffled labels."""
    filtered_control: bool = False
    """Whether the best bin of the same pool is also trained on without labels."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of TRL's SFTConfig."""
    peft: dict[str, Any] | None = None
    """Arguments of PEFT's LoraConfig; null trains all weights."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        out = Work(name, self.kind, rows=self.demonstrations)
        out.samples = self.prompts * self.samples * ((0 if self.pool else 1) + self.online_rounds)
        bins = len(self.edges) + 1 if self.bins == "edges" else self.count
        out.judged = evaluation_samples(cfg, data) * (bins + 1) * (1 + bool(self.shuffled_control))
        out.reread = evaluation_samples(cfg, data)
        out.batch, each = trained_steps(self.trainer, self.per_bin * bins)
        out.trainings = 1 + self.online_rounds + bool(self.shuffled_control)
        out.steps = each * out.trainings
        return out


@stage_kind(
    "pipeline.stages.evaluate",
    summary="score policies on the held-out prompts, side by side",
    order=90,
    several_processes=True,
    compares_policies=True,
)
@dataclass(slots=True)
class Evaluate:
    """Every policy on the same held-out prompts with the same seeds, side by side."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "evaluate"
    """Kind of the stage; needed only in a block that has another name."""
    policies: list[str] | None = None
    """Stages or models to evaluate; null takes every policy stage before this one."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        policies = self.policies or policies_before(cfg, name)
        return Work(name, self.kind, judged=evaluation_samples(cfg, data) * len(policies), loads=len(policies))


@stage_kind("pipeline.stages.comparison.method_judge", order=80, compares_policies=True)
@dataclass(slots=True)
class Judge:
    """All policies of a comparison on the same held-out prompts; `feedme/control` is the control that feedme keeps."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "judge"
    """Kind of the stage; needed only in a block that has another name."""
    start: str = "sft"
    """Stage that the methods started from."""
    methods: list[str] = field(default_factory=list)
    """Policies to judge beside the start."""
    proxy: str | None = None
    """Reward model whose score is shown beside the run's own."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        policies = 1 + len(self.methods)
        return Work(name, self.kind, judged=evaluation_samples(cfg, data) * policies, loads=policies)


@stage_kind(
    "pipeline.stages.comparison.compare",
    summary="the methods of a YAML from one model at one budget over seeds, with controls, and their report",
    scores_by_run_rewards=False,
)
@dataclass(slots=True)
class Compare:
    """Methods from one model at one budget over seeds; each is a block of the YAML."""

    __pydantic_config__: ClassVar = STRICT
    methods: list[str]
    """Stages to compare."""
    kind: str = "compare"
    """Kind of the stage; needed only in a block that has another name."""
    sweep: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Method -> key -> values: every combination becomes a method of its own."""
    start: str = "sft"
    """Stage that all methods start from."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Seeds, one run of every method each."""
    budget: Positive = 100_000
    """Completion tokens that a method may sample, where its block sets no token_budget."""
    controls: dict[str, str] = field(default_factory=dict)
    """Method -> the stage it is compared with."""
    drawn_once: dict[str, str] = field(default_factory=dict)
    """Method -> a stage that does the same with all samples drawn at the start."""
    best_of: list[Positive] = field(default_factory=lambda: [4])
    """Numbers n for which best-of-n of the start model is shown."""
    proxy: str | None = None
    """Reward model that proxy_methods are trained on, under the first seed."""
    proxy_methods: list[str] = field(default_factory=list)
    """Stages that are trained on the proxy."""
    stitching: dict[str, str] = field(default_factory=dict)
    """Method -> its name in the stitching benchmark's table."""
    stitching_run: str = "runs/stitch/stitch"
    """Directory of the stitching benchmark's table, shown beside the methods."""
    workers: Positive | None = None
    """Processes at once; null is one per core, at most 4."""
