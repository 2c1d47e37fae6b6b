"""Blocks of the research stages, each with its estimate of work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.alarm_config import STRICT, NonNegative, Positive, Share
from pipeline.config.policy_schema import Grpo, Optimizer
from pipeline.config.registry import stage_kind
from pipeline.config.stage_schema import SFT_CONFIG, Conditioned
from pipeline.config.work import Data, Work, evaluation_samples

if TYPE_CHECKING:
    from pipeline.config.load import Config


@stage_kind(
    "pipeline.research.offline_q",
    summary="learn values from logged samples, and a policy from the values",
    order=70,
    makes_policy=True,
    samples=True,
    may_be_start=True,
)
@dataclass(slots=True)
class OfflineQ:
    """Values from logged samples, and a policy from the values (IQL, ILQL); with a pool nothing is sampled."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "offline_q"
    """Kind of the stage; needed only in a block that has another name."""
    policy: str = "sft"
    """Stage or model to start from."""
    pool: list[str] | None = None
    """Stages or files of scored rollouts; null samples new ones."""
    prompts: Positive = 2048
    """Prompts to sample."""
    samples: Positive = 8
    """Completions per prompt."""
    extract: Literal["awr", "shift"] = "awr"
    """Policy from the values: awr regresses on exp(beta * (Q - V)), shift adds beta * (Q - V) to the logits."""
    expectile: Annotated[float, Field(ge=0.5, lt=1)] = 0.9
    """Expectile of Q that V fits: 0.5 is the mean of what was logged, near 1 its best."""
    beta: NonNegative = 10.0
    """Inverse temperature of the extracted policy."""
    max_weight: Annotated[float, Field(gt=0)] = 100.0
    """Largest weight of one token; awr only."""
    gamma: Share = 1.0
    """Discount per step."""
    cql: NonNegative = 0.1
    """Weight of the term that keeps Q low on tokens that no sample has (CQL)."""
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Rate per step at which the target network follows Q."""
    batch: Positive = 64
    """Episodes per step."""
    value_steps: Positive = 400
    """Steps of value training."""
    policy_steps: Positive = 200
    """Steps of policy training; awr only."""
    tokens_per_microbatch: Positive = 16_384
    """Tokens of one forward and backward pass."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=1e-3))
    """AdamW and its schedule."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        out = Work(name, self.kind, samples=0 if self.pool else self.prompts * self.samples, batch=self.batch)
        out.judged = evaluation_samples(cfg, data)
        out.steps = self.value_steps + self.policy_steps * (self.extract == "awr")
        return out


@stage_kind(
    "pipeline.research.stitching",
    summary="the stitching benchmark: every method on the same logs",
    trl_config=SFT_CONFIG,
    scores_by_run_rewards=False,
)
@dataclass(slots=True)
class Stitch:
    """The stitching benchmark: every method on the same logs, none of which holds the whole best path."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "stitch"
    """Kind of the stage; needed only in a block that has another name."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Seeds, one run of every method each."""
    memories: list[Literal["state", "history"]] = field(default_factory=lambda: ["state", "history"])
    """Kinds of prompt: the state alone, or the whole history."""
    methods: list[str] | None = None
    """Methods to run; null runs all of them."""
    medium: Share = 0.6
    """Reward of the path 1→4, against 1 for the best path; 0.5 is the mean of what follows state 2."""
    loop: Grpo = field(default_factory=Grpo)
    """Settings that grpo, reinforce, ppo and monte_carlo share."""
    offline_q: OfflineQ = field(default_factory=OfflineQ)
    """Settings of offline_q."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of TRL's SFTConfig for sft, feedme and conditions."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        from verifiers import stitch

        turns = sum(len(walk) for walk in stitch.logs(self.medium))
        runs = len(self.seeds) * len(self.memories)
        batch = self.loop.prompts * self.loop.samples
        return Work(name, self.kind, rows=turns, steps=self.loop.steps * runs, batch=batch, at_most=True)


@stage_kind(
    "pipeline.research.revaluation",
    summary="the revaluation benchmark: which method is right after the reward or the world has changed",
    trl_config=SFT_CONFIG,
    scores_by_run_rewards=False,
)
@dataclass(slots=True)
class Revalue:
    """The revaluation benchmark: every method on the same logs, and then on the same samples of a changed world."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "revalue"
    """Kind of the stage; needed only in a block that has another name."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Seeds, one run of every method each."""
    memories: list[Literal["state", "history"]] = field(default_factory=lambda: ["state", "history"])
    """Kinds of prompt: the state alone, or the whole history."""
    changes: list[Literal["reward_moves", "reward_appears", "shortcut", "new_path"]] = field(
        default_factory=lambda: ["reward_moves", "reward_appears", "shortcut", "new_path"]
    )
    """What changes after learning (verifiers/revalue.py)."""
    methods: list[str] | None = None
    """Methods to run; null runs all of them."""
    old_walks: Positive = 8
    """Copies of every walk that the logs of the old world hold."""
    walks: list[Annotated[int, Field(ge=0)]] = field(default_factory=lambda: [0, 4, 16])
    """New walks per gadget, besides one sample of each changed step, after which a policy is judged."""
    online_walks: list[Positive] = field(default_factory=lambda: [16, 64])
    """Walks per gadget, sampled by the policy itself, after which grpo is judged; multiples of loop.samples."""
    planning: Annotated[int, Field(ge=0)] = 20
    """Updates from the model after each observed step; dyna only."""
    new_value_steps: Positive = 100
    """Further steps of value training on old and new logs; iql only."""
    loop: Grpo = field(default_factory=Grpo)
    """Settings of grpo."""
    offline_q: OfflineQ = field(default_factory=OfflineQ)
    """Settings of iql, and beta and policy_steps of every policy made from values."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of TRL's SFTConfig for the start and for conditions."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        from verifiers import revalue

        turns = sum(len(walk) - 1 for walk in revalue.WORLDS["before"].walks()) * revalue.GADGETS * self.old_walks
        runs = len(self.seeds) * len(self.memories) * len(self.changes)
        steps = max(self.online_walks, default=0) // self.loop.samples * runs
        return Work(name, self.kind, rows=turns, steps=steps, batch=revalue.GADGETS * self.loop.samples, at_most=True)


@stage_kind(
    "pipeline.research.descriptions",
    summary="condition labels as sentences, asked for combinations that were never trained",
    order=65,
    makes_policy=True,
    samples=True,
    trl_config=SFT_CONFIG,
)
@dataclass(slots=True)
class Descriptions(Conditioned):
    """Condition labels of several attributes, trained on some of their combinations and requested for all of them."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "descriptions"
    """Kind of the stage; needed only in a block that has another name."""
    unseen: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the combinations of attributes whose samples are left out of training."""
    least: Positive = 20
    """Samples in the pool from which a combination counts as one."""


@stage_kind(
    "pipeline.research.probe",
    summary="what a condition label does inside the model",
)
@dataclass(slots=True)
class Probe:
    """What a condition label does inside the model."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "probe"
    """Kind of the stage; needed only in a block that has another name."""
    policy: str = "conditioned"
    """Condition-trained stage to look into."""
    prompts: Positive = 100
    """Held-out prompts on which activations are read."""
    layers: list[int] | None = None
    """Layers to read; null reads all of them."""
    scales: list[float] = field(default_factory=lambda: [-1.0, 0.5, 1.0, 2.0])
    """Scales of the steering vector."""
    samples: Positive = 4
    """Completions per prompt."""


@stage_kind(
    "pipeline.research.time_to_target",
    summary="sampled tokens, checks and time until each policy stage reaches a target, over seeds",
    scores_by_run_rewards=False,
)
@dataclass(slots=True)
class TimeToTarget:
    """How much each policy stage of the YAML samples, checks and waits until it reaches a target, over seeds."""

    __pydantic_config__: ClassVar = STRICT
    methods: list[str]
    """Policy stages to run; the first is the one that costs are compared with."""
    kind: str = "time_to_target"
    """Kind of the stage; needed only in a block that has another name."""
    start: str = "sft"
    """Stage that all methods start from."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Seeds, one run of every method each."""
    column: str = "heldout_accuracy"
    """Metric whose curve is followed; lines of metrics.jsonl without it are skipped."""
    target: float = 0.5
    """Value to reach."""
    average: Positive = 1
    """Values of the column over which a trailing mean is taken."""
    check_costs_s: list[NonNegative] = field(default_factory=list)
    """Seconds per check of the real verifier for which the time to target is computed."""
    checks_at_once: Positive = 16
    """Checks that run in parallel."""
    slow_runs: dict[str, NonNegative] = field(default_factory=dict)
    """Method -> seconds that its real verifier takes per check, to hold the computed time against the measured."""
    workers: Positive | None = None
    """Processes at once; null is one per core, at most 4."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        parts = [cfg.blocks[method].work(method, cfg, data) for method in self.methods if method in cfg.blocks]
        out = Work(name, self.kind, batch=max((part.batch for part in parts), default=0))
        out.steps = sum(part.steps for part in parts) * len(self.seeds)
        out.samples = sum(part.samples for part in parts) * len(self.seeds)
        out.judged = sum(part.judged for part in parts) * len(self.seeds)
        return out


@stage_kind(
    "pipeline.research.surrogate_study",
    summary="bias and variance of a surrogate reward at a fixed policy",
    scores_by_run_rewards=False,
)
@dataclass(slots=True)
class SurrogateStudy:
    """Bias and gradient variance of a surrogate reward against the share of real checks, at a fixed policy."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "surrogate_study"
    """Kind of the stage; needed only in a block that has another name."""
    policy: str = "sft"
    """Stage or model that is sampled."""
    of: str = "gridworld"
    """Verifier that the surrogate stands in for."""
    shares: list[Annotated[float, Field(gt=0, le=1)]] = field(default_factory=lambda: [1.0, 0.5, 0.25, 0.1, 0.05])
    """Shares of samples that are checked."""
    training_prompts: Positive = 256
    """Prompts whose samples are all checked and learned from."""
    prompts: Positive = 32
    """Prompts on which bias and variance are measured."""
    samples: Positive = 8
    """Completions per prompt."""
    draws: Positive = 400
    """Draws of the checked rows, for the Monte-Carlo estimates."""
    tokens_per_microbatch: Positive = 16_384
    """Tokens of one forward and backward pass."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        return Work(name, self.kind, samples=(self.training_prompts + self.prompts) * self.samples)


@stage_kind(
    "pipeline.research.segment_study",
    summary="credit by token, segment and sequence on a Markov chain with closed forms",
    scores_by_run_rewards=False,
)
@dataclass(slots=True)
class SegmentStudy:
    """Sampled tokens to a pass rate by the step of credit, on a Markov chain whose pass rate and values are known."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "segment_study"
    """Kind of the stage; needed only in a block that has another name."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Seeds, one run of every level each."""
    lines: Positive = 10
    """Lines of an answer."""
    line_tokens: Positive = 6
    """Tokens of a line."""
    start_rate: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Pass rate at the start."""
    target: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Pass rate to reach."""
    batch: Positive = 64
    """Answers per step."""
    steps: Positive = 300
    """Steps after which a run is given up."""
    lam: Share = 0.95
    """GAE's lambda."""
    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    """Step size of the policy on whitened advantages."""
    critic_rate: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the way that a step moves the learned values towards the returns."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        return Work(name, self.kind)


@stage_kind(
    "pipeline.research.surrogate_chain",
    summary="what a surrogate reward costs and saves, on a policy whose expected reward is known",
    scores_by_run_rewards=False,
)
@dataclass(slots=True)
class SurrogateChain:
    """Checks and computed seconds until a table of letters reaches a score, by surrogate reward and control."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "surrogate_chain"
    """Kind of the stage; needed only in a block that has another name."""
    methods: list[Literal["full", "quarter", "tenth", "adaptive", "constant", "uncorrected", "frozen"]] = field(
        default_factory=lambda: ["full", "quarter", "tenth", "adaptive", "constant", "uncorrected", "frozen"]
    )
    """How answers are scored; the first is the one that costs are compared with."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Seeds, one run of every method each."""
    letters: Positive = 8
    """Letters of an answer."""
    batch: Positive = 64
    """Answers per step."""
    steps: Positive = 80
    """Steps of each run."""
    learning_rate: Annotated[float, Field(gt=0)] = 6.0
    """Step size of the policy."""
    target: float = 0.7
    """Expected real score to reach."""
    column: str = "expected score"
    """Name of the curve in charts."""
    average: Positive = 1
    """Values of the curve over which a trailing mean is taken."""
    step_s: NonNegative = 1.0
    """Seconds of a step besides its checks."""
    check_costs_s: list[NonNegative] = field(default_factory=lambda: [0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10])
    """Seconds per check for which the time to the target is computed."""
    checks_at_once: Positive = 16
    """Checks that run in parallel."""

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        return Work(name, self.kind)
