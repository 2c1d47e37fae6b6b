"""Blocks of a policy-optimisation stage: ppo, grpo, and what the two share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.alarm_config import STRICT, Alarms, Monitor, NonNegative, Positive, Share
from pipeline.config.presets import PRESETS
from pipeline.config.registry import stage_kind
from pipeline.config.run_schema import Prompts
from pipeline.config.work import Data, Work, evaluation_samples

if TYPE_CHECKING:
    from pipeline.config.load import Config

METHODS = tuple(PRESETS)
# credits that compare the samples of one prompt
BY_GROUP = ("group", "leave_one_out", "maxrl", "gdpo", "pass_at_k", "optimal_baseline")


@dataclass(slots=True)
class Segments:
    """Where a segment of a completion ends, for credit.level segment."""

    __pydantic_config__: ClassVar = STRICT
    by: Literal["tokens", "newline", "sentence", "peaks", "marker"] = "newline"
    """What ends a segment: a number of tokens, a line, a sentence, the token before a peak of surprise, or a marker."""
    tokens: Positive = 8
    """Tokens of a segment; by tokens only."""
    marker: str | None = None
    """Text that the model writes at the end of a step, such as "</step>"; by marker only."""


@dataclass(slots=True)
class Credit:
    """Score -> advantage."""

    __pydantic_config__: ClassVar = STRICT
    kind: Literal[
        "gae", "group", "leave_one_out", "global_baseline", "monte_carlo", "maxrl", "gdpo", "pass_at_k",
        "optimal_baseline",
    ] = "group"  # fmt: skip
    """Advantage estimator; gae needs a critic, monte_carlo samples continuations, most others a group per prompt."""
    scale: bool = True
    """Whether group credit divides by the group's standard deviation; false is Dr. GRPO."""
    gamma: Share = 1.0
    """Discount per token; gae and monte_carlo only."""
    lam: Share = 0.95
    """GAE's lambda."""
    level: Literal["token", "turn", "segment"] = "token"
    """What one step of credit is; with turn or segment, group credit gives it only rewards from its start on."""
    segments: Segments = field(default_factory=Segments)
    """Where segments end; level segment only."""
    whiten: bool = True
    """Whether gae and monte_carlo advantages are whitened over the batch."""
    points: Positive = 4
    """Positions in a completion from which monte_carlo samples continuations."""
    continuations: Positive = 4
    """Continuations sampled per position by monte_carlo."""
    k: Annotated[int, Field(ge=2)] = 4
    """Number of samples whose best one pass_at_k credit maximises; at most samples."""


@dataclass(slots=True)
class Loss:
    """The policy loss."""

    __pydantic_config__: ClassVar = STRICT
    kind: Literal[
        "clip", "gspo", "cispo", "reinforce", "dppo", "sapo", "vespo", "kl_cov", "clip_cov",
    ] = "clip"  # fmt: skip
    """Surrogate: clip is PPO's ratio per token, gspo one per sequence, reinforce none; others as in their papers."""
    clip_low: NonNegative = 0.2
    """The ratio is clipped below 1 - clip_low; the limit of the divergence for dppo."""
    clip_high: NonNegative = 0.2
    """The ratio is clipped above 1 + clip_high; the limit of the divergence for dppo."""
    old_policy: Literal["trainer", "generator"] = "trainer"
    """Policy in the ratio's denominator: the trainer's before the step's updates, or the generator's, which sampled."""
    divergence: Literal["tv", "kl"] = "tv"
    """Divergence of dppo, of the sampled token against all others: total variation or KL."""
    sapo_tau_positive: Annotated[float, Field(gt=0)] = 1.0
    """Steepness of sapo's gate for positive advantages."""
    sapo_tau_negative: Annotated[float, Field(gt=0)] = 1.05
    """Steepness of sapo's gate for negative advantages."""
    vespo_k_positive: NonNegative = 2.0
    """Power of the sequence ratio in vespo's weight for positive advantages."""
    vespo_lambda_positive: NonNegative = 3.0
    """Decay of vespo's weight with the sequence ratio for positive advantages."""
    vespo_k_negative: NonNegative = 3.0
    """Power of the sequence ratio in vespo's weight for negative advantages."""
    vespo_lambda_negative: NonNegative = 2.0
    """Decay of vespo's weight with the sequence ratio for negative advantages."""
    cov_share: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Share of a step's tokens that kl_cov penalises (2e-3 in its preset), or clip_cov leaves out at the most."""
    cov_coef: NonNegative = 1.0
    """Weight of kl_cov's penalty."""
    cov_low: float = 1.0
    """Covariance above which clip_cov may leave a token out."""
    cov_high: float = 5.0
    """Covariance below which clip_cov may leave a token out."""
    top_entropy: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a step's tokens, those with the highest entropy, that the policy loss keeps; 1 keeps all."""
    off_policy_limit: Annotated[float, Field(gt=0)] | None = None
    """Mean log-ratio per token, in nats, above which sequences with negative advantage are masked."""
    reject_ratio_low: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sequences whose mean ratio of trainer to generator lies below are left out, such as 0.999; null is no limit."""
    reject_ratio_high: Annotated[float, Field(ge=1)] | None = None
    """Sequences whose mean ratio of trainer to generator lies above are left out, such as 1.001; null is no limit."""
    reject_k3: Annotated[float, Field(gt=0)] | None = None
    """Sequences whose mean k3 divergence of generator and trainer lies above are left out, such as 0.01."""
    aggregate: Literal["token_mean", "sequence_mean", "sequence_sum", "constant_length"] = "token_mean"
    """Mean over tokens, mean of each sequence's mean or sum, or sum divided by the constant sampling.max_tokens."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    ptx_coef: NonNegative = 0.0
    """Weight of an SFT loss mixed into each update (InstructGPT's PPO-ptx)."""
    observation_coef: NonNegative = 0.0
    """Weight of the cross-entropy on what tools or the environment answered (ECHO); the paper takes 0.05."""
    importance: Literal["none", "truncate", "mask"] = "none"
    """Correction of the mismatch between generator and trainer by importance weights: truncate or mask large ones."""
    importance_level: Literal["token", "sequence"] = "token"
    """Whether importance weights are per token or per sequence."""
    importance_cap: Annotated[float, Field(gt=0)] = 2.0
    """Largest importance weight."""

    @property
    def rejects(self) -> bool:
        """Whether sequences are masked by the mismatch of trainer and generator."""
        return any(limit is not None for limit in (self.reject_ratio_low, self.reject_ratio_high, self.reject_k3))

    @property
    def chooses_tokens(self) -> bool:
        """Whether tokens or sequences are chosen once per step, before its updates."""
        return self.rejects or self.top_entropy < 1 or self.kind in ("kl_cov", "clip_cov")


@dataclass(slots=True)
class Kl:
    """KL to the reference policy: in the reward or in the loss, never both."""

    __pydantic_config__: ClassVar = STRICT
    coef: NonNegative = 0.0
    """Weight of the KL; 0 needs no reference model."""
    where: Literal["reward", "loss"] = "loss"
    """Whether the KL is subtracted from the reward (PPO) or added to the loss (GRPO)."""
    kind: Literal["k1", "k2", "k3", "unbiased"] = "k3"
    """Estimator; k1 in the reward, the others in the loss."""
    target: Annotated[float, Field(gt=0)] | None = None
    """KL per sequence, in nats, that an adaptive controller steers coef towards; null keeps coef fixed."""
    horizon: Positive = 10_000
    """Samples over which the adaptive controller moves coef."""
    reference: Literal["frozen", "ema", "periodic"] = "frozen"
    """Reference policy: the start, a moving average of the policy, or a periodic copy of it."""
    ema: Share = 0.99
    """Decay per step of the ema reference."""
    every: Positive = 100
    """Steps between resets of the periodic reference."""


@dataclass(slots=True)
class Critic:
    """The value model of gae credit."""

    __pydantic_config__: ClassVar = STRICT
    init: Literal["reward_model", "policy"] = "reward_model"
    """Weights the critic starts from; without a learned reward it starts from the policy."""
    shared: bool = False
    """Whether the value head sits on the policy's own backbone."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Learning rate of the critic."""
    clip: NonNegative = 0.2
    """Values are clipped this far around those at sampling time; 0 clips nothing."""
    coef: NonNegative = 0.5
    """Weight of the value loss; shared critic only."""
    warmup_steps: Annotated[int, Field(ge=0)] = 3
    """First steps in which only the critic is trained."""
    bootstrap: bool = True
    """Whether a truncated completion continues with its last value; false treats it as finished."""
    segment_tokens: Literal["all", "first"] = "all"
    """Tokens whose values learn their segment's return, its earnings so far included; level segment only."""


@dataclass(slots=True)
class Groups:
    """The samples of one prompt: which groups and samples are trained on."""

    __pydantic_config__: ClassVar = STRICT
    dynamic: bool = False
    """Whether prompts whose samples all have the same reward are replaced by new ones (DAPO's dynamic sampling)."""
    refill_cap: Positive = 3
    """Most batches sampled for one step when dynamic."""
    overlong: Literal["keep", "mask"] = "keep"
    """Whether truncated completions are trained on or masked."""
    overlong_baseline: Literal["include", "exclude"] = "include"
    """Whether the reward of a masked completion counts in its group's baseline."""
    overlong_buffer: Annotated[int, Field(ge=0)] = 0
    """Last tokens before the limit over which a length penalty rises from 0 to 1."""
    missing_eos_penalty: NonNegative = 0.0
    """Subtracted from the reward of a completion without EOS."""


@dataclass(slots=True)
class Sampler:
    """Which prompts a step samples."""

    __pydantic_config__: ClassVar = STRICT
    kind: Literal["uniform", "difficulty"] = "uniform"
    """Every prompt in turn, or by its pass rate so far: those that pass about half of the time most often."""
    floor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Smallest relative chance of a prompt; difficulty only."""
    discount: Share = 0.7
    """Weight of a prompt's earlier groups against its last one in its pass rate; difficulty only."""
    column: str | None = None
    """Column of the rows that names their source, for ratios."""
    ratios: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    """Source -> its share of the prompts, as {gsm8k: 3, countdown: 1}; sources left out are not sampled."""


@dataclass(slots=True)
class Teacher:
    """The teacher of on-policy distillation; the policy samples, the teacher judges each token."""

    __pydantic_config__: ClassVar = STRICT
    model: str | None = None
    """Stage or model of the teacher; null is the policy itself, which is shown more by `shows`."""
    server: str | None = None
    """Address of a vLLM server with the teacher, in place of model, such as http://localhost:8000."""
    shows: str | None = None
    """Text before the teacher's prompt, with {demonstration}, {answer}, {detail} or {peer}; null shows the prompt."""
    follow: Literal["frozen", "ema", "live"] = "frozen"
    """Teacher that is the policy itself: its start, a moving average of it, or its current weights."""
    ema: Share = 0.95
    """Decay per step of an ema teacher."""
    form: Literal["sampled", "full"] = "sampled"
    """Reverse KL of the sampled token as advantage, or divergence of the full distributions as a loss."""
    beta: Share = 1.0
    """Divergence of form full: 0 is forward KL, 1 reverse KL, 0.5 Jensen-Shannon."""
    normalise: bool = True
    """Whether a divergence between the two ends of beta is divided by beta (1 - beta), which vanishes towards them."""
    top_k: Positive | None = None
    """Compare the policy's k most likely tokens, or a server's, and the rest as one; null compares all tokens."""
    coef: NonNegative = 1.0
    """Weight of the distillation."""
    reward_coef: NonNegative = 0.0
    """Weight of the advantage from the rewards; 0 learns from the teacher alone."""
    shuffle: bool = False
    """Control: the teacher judges each answer as one to another prompt."""


@dataclass(slots=True)
class Overlap:
    """Sampling ahead of training, as an asynchronous trainer does, on a fixed schedule."""

    __pydantic_config__: ClassVar = STRICT
    max_lag: Annotated[int, Field(ge=1, le=8)] = 1
    """Policy updates between sampling a batch and training on it; the first batches have fewer."""


@dataclass(slots=True)
class Episodes:
    """Several turns with an environment between them; the environment's class is in a verifier's file."""

    __pydantic_config__: ClassVar = STRICT
    environment: str
    """Name of the verifier whose file has the environment."""
    max_turns: Positive = 4
    """Most turns of one episode."""
    memory: Literal["state", "history"] = "state"
    """Prompt of a turn: the last observation alone, or all earlier turns too."""
    max_observation_tokens: Positive = 1024
    """Room in the engine's context for the environment's text of each turn, in tokens."""


@dataclass(slots=True)
class Optimizer:
    """AdamW and its schedule."""

    __pydantic_config__: ClassVar = STRICT
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or decay to 0 over the stage's steps."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises from 0."""
    weight_decay: NonNegative = 0.0
    """AdamW's weight decay."""
    beta1: Share = 0.9
    """AdamW's decay of the first moment."""
    beta2: Share = 0.999
    """AdamW's decay of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-5
    """AdamW's epsilon."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradient norm above which gradients are scaled down."""


@dataclass(slots=True)
class Policy:
    """A policy-optimisation stage: PPO and GRPO are settings of it."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "policy"
    """Kind of the stage; needed only in a block that has another name."""
    policy: str = "sft"
    """Stage or model to start from; also the KL's reference."""
    method: Literal[METHODS] | None = None  # type: ignore[valid-type]
    """Published method whose credit, loss and KL to take; keys written beside it win."""
    reward: dict[str, dict[str, Any]] | None = None
    """Rewards of this stage, parts as in `rewards`; null takes the run's."""
    steps: Positive = 100
    """Policy updates: each samples once and trains on it."""
    token_budget: Positive | None = None
    """No further step starts once this many completion tokens are sampled."""
    overlap: bool | Overlap = False
    """Whether later steps' samples are drawn during an update: true is one step ahead; needs loss.importance."""
    evaluate_every: Positive | None = None
    """Evaluate every N steps, on the validation prompts if there are any; null evaluates at the end only."""
    keep: Literal["last", "best"] = "last"
    """Step whose weights are saved: the last, or the best of the evaluation passes; needs prompts.validation."""
    keep_by: Literal["accuracy", "reward"] = "accuracy"
    """Figure on the validation prompts by which keep: best chooses."""
    patience: Positive | None = None
    """Stop after this many evaluation passes without a better one; null runs all steps; needs keep: best."""
    prompts: Positive = 32
    """Prompts per step."""
    samples: Positive = 8
    """Completions per prompt, the group size."""
    sampler: Sampler = field(default_factory=Sampler)
    """Which prompts a step samples."""
    epochs: Positive = 1
    """Passes over each step's samples."""
    minibatches: Positive = 1
    """Optimizer steps per pass; divides prompts times samples."""
    tokens_per_microbatch: Positive = 16_384
    """Tokens of one forward and backward pass; lower it if memory runs out, results do not change."""
    credit: Credit = field(default_factory=Credit)
    """How scores become advantages."""
    loss: Loss = field(default_factory=Loss)
    """The policy loss."""
    kl: Kl = field(default_factory=Kl)
    """KL to the reference policy."""
    critic: Critic | None = None
    """The value model; gae credit needs one."""
    teacher: Teacher | None = None
    """A teacher to distill from, alone or beside the rewards; null has none."""
    groups: Groups = field(default_factory=Groups)
    """Which groups and samples are trained on."""
    episodes: Episodes | None = None
    """Several turns with an environment; null samples one completion per prompt."""
    ptx_data: Prompts | None = None
    """Demonstrations for loss.ptx_coef; null takes the run's own prompts and completions."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """AdamW and its schedule."""
    alarms: Alarms = field(default_factory=Alarms)
    """Limits past which the run stops with exit code 3."""
    monitor: Monitor | None = field(default_factory=Monitor)
    """Second, stricter score against reward hacking; null turns it off."""
    checkpoint_every: Positive = 20
    """Steps between checkpoints."""
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass to save memory."""
    compile: bool = False
    """Whether the model is compiled with torch.compile."""
    peft: dict[str, Any] | None = None
    """Arguments of PEFT's LoraConfig, such as {r: 16, target_modules: all-linear}; null trains all weights."""

    @property
    def max_lag(self) -> int:
        """Policy updates between sampling a batch and training on it; 0 without overlap."""
        return self.overlap.max_lag if isinstance(self.overlap, Overlap) else int(self.overlap)

    def work(self, name: str, cfg: Config, data: Data) -> Work:
        refills = self.groups.refill_cap if self.groups.dynamic else 1
        out = Work(name, self.kind, steps=self.steps, batch=self.prompts * self.samples, passes=self.epochs)
        out.samples, out.at_most = out.steps * out.batch * refills, refills > 1
        out.judged = evaluation_samples(cfg, data)
        out.reread = 2 * out.judged
        if self.evaluate_every:
            prompts = data.validation_prompts or data.heldout_prompts
            looked_at = prompts * cfg.evaluation.samples * (self.steps // self.evaluate_every)
            out.judged, out.reread = out.judged + looked_at, out.reread + looked_at
        if self.credit.kind == "monte_carlo":  # positions are spread evenly: half of a completion follows on average
            starts = 1 if self.samples == 1 else 0
            out.continued = self.credit.continuations * (self.credit.points / 2 + starts)
        return out


@stage_kind(
    "pipeline.stages.ppo",
    summary="policy optimisation with a critic",
    order=40,
    makes_policy=True,
    samples=True,
    several_processes=True,
    may_be_start=True,
    # InstructGPT's recipe, arXiv:2203.02155; GRPO's settings are the dataclass's own
    defaults={"credit": {"kind": "gae"}, "kl": {"coef": 0.05, "where": "reward", "kind": "k1"}, "critic": {}},
)
@dataclass(slots=True)
class Ppo(Policy):
    """PPO: advantages by GAE from a critic, KL in the reward."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "ppo"
    """Kind of the stage; needed only in a block that has another name."""


@stage_kind(
    "pipeline.stages.grpo",
    summary="policy optimisation against the group's mean",
    order=50,
    makes_policy=True,
    samples=True,
    several_processes=True,
    may_be_start=True,
)
@dataclass(slots=True)
class Grpo(Policy):
    """GRPO: advantages against the mean of a prompt's own samples."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "grpo"
    """Kind of the stage; needed only in a block that has another name."""


@stage_kind(
    "pipeline.stages.distill",
    summary="on-policy distillation from a teacher",
    order=45,
    makes_policy=True,
    samples=True,
    several_processes=True,
    may_be_start=True,
    defaults={"teacher": {}},
)
@dataclass(slots=True)
class Distill(Policy):
    """On-policy distillation: the policy samples, a teacher says how likely each of its tokens is."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "distill"
    """Kind of the stage; needed only in a block that has another name."""


def trains_adapter(block: Any) -> bool:
    """Whether this stage trains a LoRA adapter; kinds that cannot have no `peft` key."""
    return bool(getattr(block, "peft", None))
