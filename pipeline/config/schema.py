"""The typed shape of a YAML: one dataclass a block, about a dozen fields each. No logic; config/load.py reads it.

What TRL, PEFT or vLLM already name is not repeated here: it passes through `trainer:`, `peft:` and `vllm:`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.alarm_config import STRICT, Alarms, Monitor, NonNegative, Positive, Share


@dataclass(slots=True)
class Tiny:
    """A model made from nothing: the Qwen2 architecture and a character tokenizer, saved as a Hub model would be."""

    __pydantic_config__: ClassVar = STRICT
    hidden_size: Positive = 64
    intermediate_size: Positive = 192
    num_hidden_layers: Positive = 2
    num_attention_heads: Positive = 2
    max_position_embeddings: Positive = 128
    characters: str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;<>=+-*/()[]?!'\"\n"

    @property
    def parameters(self) -> int:
        """About how many weights: attention's four matrices and the MLP's three a layer, and the tied embedding."""
        layer = 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size
        return self.num_hidden_layers * layer + len(self.characters) * self.hidden_size


@dataclass(slots=True)
class Model:
    """Where the base model comes from: a local path or Hub id, or one made here."""

    __pydantic_config__: ClassVar = STRICT
    path: str | None = None
    tiny: Tiny | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attn: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    chat_template: str | None = None
    trust_remote_code: bool = False
    quantization: Literal["nf4", "fp4"] | None = None  # QLoRA: 4 bits for the frozen base of stages with `peft`


@dataclass(slots=True)
class Prompts:
    """Dataset rows: a JSONL or Parquet path or a Hub id (`path`), or a verifier that makes its tasks (`procedural`)."""

    __pydantic_config__: ClassVar = STRICT
    path: str | None = None
    procedural: str | None = None
    name: str | None = None  # a Hub data set's configuration
    split: str = "train"
    rows: Positive | None = None  # how many to make or to read; None reads all
    heldout: Share = 0.1  # share of the distinct prompts, chosen by a hash of their text
    heldout_path: str | None = None  # or a file of its own
    heldout_split: str | None = None
    format: str | None = None  # a well-known data set's own columns, read by pipeline/formats.py
    decontaminate: Positive | None = None  # drop training rows that share this many words in a row with a held-out one
    prompt: str = "prompt"  # the column with the prompt, and a template around it
    completion: str = "completion"
    template: str | None = None
    task: dict[str, str] | None = None  # the verifier's field -> the column; None: the column `task`, or all columns
    system: str | None = None
    chat: bool = False  # put a plain-text prompt into the chat template as the user's turn
    chat_kwargs: dict[str, Any] = field(default_factory=dict)  # to the template, as {enable_thinking: false}
    max_prompt_tokens: Positive | None = None


@dataclass(slots=True)
class Sampling:
    """Every field is always sent: a model's generation_config.json never decides."""

    __pydantic_config__: ClassVar = STRICT
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0  # 0: all
    min_p: Share = 0.0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    max_tokens: Positive = 256


@dataclass(slots=True)
class Generate:
    __pydantic_config__: ClassVar = STRICT
    backend: Literal["auto", "vllm", "transformers", "vllm_server", "ray"] = "auto"
    url: str | list[str] | None = None  # vllm_server: where; of several, each rank samples from one
    weights_dir: str = "runs/.weights"  # vllm_server, ray: where weights pass; all machines see the same directory
    batch: Positive = 256  # sequences at once, transformers only
    canary_tolerance: Annotated[float, Field(gt=0)] | None = None  # None: by dtype, 1e-3 float32, 0.25 bfloat16
    vllm: dict[str, Any] = field(default_factory=dict)
    ray: dict[str, Any] = field(default_factory=dict)  # as {concurrency: 8}: fields of Ray Data's vLLM processor


@dataclass(slots=True)
class Evaluation:
    """How every policy is held against the held-out prompts."""

    __pydantic_config__: ClassVar = STRICT
    samples: Positive = 16  # per held-out prompt
    prompts: Positive | None = None  # None: all of them
    k: Positive = 4


@dataclass(slots=True)
class Base:
    __pydantic_config__: ClassVar = STRICT
    kind: str = "base"


@dataclass(slots=True)
class Sft:
    __pydantic_config__: ClassVar = STRICT
    kind: str = "sft"
    policy: str = "base"
    data: Prompts | None = None  # None: the run's own prompts, their completion column
    min_reward: float | None = None  # only demonstrations that the run's rewards score at least so
    trainer: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] | None = None


@dataclass(slots=True)
class Stop:
    """When FeedME's rounds end early; the best round's model is kept. Judged on the held-out prompts."""

    __pydantic_config__: ClassVar = STRICT
    patience: Positive = 1  # rounds without a gain
    min_gain: NonNegative = 0.0  # of held-out accuracy
    min_distinct: NonNegative = 0.0  # distinct answers a held-out prompt


@dataclass(slots=True)
class Feedme:
    __pydantic_config__: ClassVar = STRICT
    kind: str = "feedme"
    policy: str = "sft"
    reward: dict[str, dict[str, Any]] | None = None  # what filters look at; None: the run's rewards
    rounds: Positive = 2
    prompts: Positive = 1024  # a round
    samples: Positive = 8
    token_budget: Positive | None = None  # completion tokens, the same share each round; prompts is then the most
    filters: list[str | dict[str, Any]] = field(default_factory=lambda: [{"threshold": 1.0}, "dedup", {"cap": 4}])
    start: Literal["last", "base"] = "last"
    data: Literal["replace", "accumulate"] = "replace"  # a round learns from its own samples, or from all so far
    pool: list[str] | None = None  # stages or files of scored samples, human ratings too; None: sample afresh
    sft_share: Share = 0.0
    stop: Stop | None = None
    random_control: bool = True  # the same chain once more, keeping as many per prompt, chosen blindly
    more_sft_control: bool = True  # as many more steps on the demonstrations, where the rows hold any
    trainer: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] | None = None


@dataclass(slots=True)
class RewardModel:
    __pydantic_config__: ClassVar = STRICT
    kind: str = "reward_model"
    policy: str = "sft"
    init: str | None = None  # the backbone; None: the policy
    data: Prompts | None = None  # a preference data set; None: pairs from scored samples
    pool: list[str] | None = None  # stages or files of scored samples; None: sample afresh
    prompts: Positive = 2048
    samples: Positive = 8
    token_budget: Positive | None = None
    pairs_per_prompt: Positive = 4
    corrupted: NonNegative = 1.0  # corrupted negatives for each sampled pair: truncated, replaced, appended
    heldout_prompts: Positive = 512
    trainer: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] | None = None


@dataclass(slots=True)
class Credit:
    """Score -> advantage."""

    __pydantic_config__: ClassVar = STRICT
    kind: Literal["gae", "group", "leave_one_out", "global_baseline", "monte_carlo"] = "group"
    scale: bool = True  # group: divide by the group's std; False is Dr. GRPO
    gamma: Share = 1.0
    lam: Share = 0.95
    level: Literal["token", "turn"] = "token"  # what one step is; turn: groups too credit a turn with what comes after
    whiten: bool = True  # gae and monte_carlo
    points: Positive = 4  # monte_carlo: places to continue from
    continuations: Positive = 4


@dataclass(slots=True)
class Loss:
    __pydantic_config__: ClassVar = STRICT
    kind: Literal["clip", "gspo", "cispo", "reinforce"] = "clip"
    clip_low: NonNegative = 0.2
    clip_high: NonNegative = 0.2
    aggregate: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    entropy_coef: float = 0.0
    ptx_coef: NonNegative = 0.0  # a batch of SFT data mixed into each update (InstructGPT's PPO-ptx)
    importance: Literal["none", "truncate", "mask"] = "none"  # correction for generator mismatch
    importance_level: Literal["token", "sequence"] = "token"
    importance_cap: Annotated[float, Field(gt=0)] = 2.0


@dataclass(slots=True)
class Kl:
    """Distance to the reference: in the reward or in the loss, never both."""

    __pydantic_config__: ClassVar = STRICT
    coef: NonNegative = 0.0
    where: Literal["reward", "loss"] = "loss"
    kind: Literal["k1", "k2", "k3", "unbiased"] = "k3"
    target: Annotated[float, Field(gt=0)] | None = None  # nats a sequence: the adaptive controller's goal
    horizon: Positive = 10_000  # samples over which the controller moves the coefficient
    reference: Literal["frozen", "ema", "periodic"] = "frozen"
    ema: Share = 0.99
    every: Positive = 100  # periodic: steps between resets


@dataclass(slots=True)
class Critic:
    __pydantic_config__: ClassVar = STRICT
    init: Literal["reward_model", "policy"] = "reward_model"
    shared: bool = False  # the head on the policy's own backbone
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    clip: NonNegative = 0.2
    coef: NonNegative = 0.5  # shared only
    warmup_steps: Annotated[int, Field(ge=0)] = 3  # steps in which only the critic learns
    bootstrap: bool = True  # a truncated end continues with its value; False: it ends there


@dataclass(slots=True)
class Groups:
    __pydantic_config__: ClassVar = STRICT
    dynamic: bool = False  # refill prompts whose samples all earned the same
    refill_cap: Positive = 3  # batches sampled for one step at the most
    overlong: Literal["keep", "mask"] = "keep"
    overlong_buffer: Annotated[int, Field(ge=0)] = 0  # tokens before the limit over which a penalty rises to 1
    missing_eos_penalty: NonNegative = 0.0


@dataclass(slots=True)
class Episodes:
    """Several turns with an environment between: its class stands in a verifier's file."""

    __pydantic_config__: ClassVar = STRICT
    environment: str
    max_turns: Positive = 4
    memory: Literal["state", "history"] = "state"  # a turn's prompt: the last observation, or all that went before
    max_observation_tokens: Positive = 1024  # room in the engine's context for what the environment says per turn


@dataclass(slots=True)
class Optimizer:
    __pydantic_config__: ClassVar = STRICT
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: NonNegative = 0.0
    beta1: Share = 0.9
    beta2: Share = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-5
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


@dataclass(slots=True)
class Policy:
    """A policy-optimisation stage: PPO and GRPO are settings of it."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "grpo"
    policy: str = "sft"
    reward: dict[str, dict[str, Any]] | None = None  # parts as in `rewards`, such as a learned one; None: the run's
    steps: Positive = 100
    token_budget: Positive | None = None  # no further step once so many completion tokens are sampled
    overlap: bool = False  # draw the next step's samples while this one's update runs; needs loss.importance
    evaluate_every: Positive | None = None  # steps between looks at the held-out prompts; None: only at the end
    prompts: Positive = 32  # a step
    samples: Positive = 8  # a prompt
    epochs: Positive = 1
    minibatches: Positive = 1
    tokens_per_microbatch: Positive = 16_384
    credit: Credit = field(default_factory=Credit)
    loss: Loss = field(default_factory=Loss)
    kl: Kl = field(default_factory=Kl)
    critic: Critic | None = None
    groups: Groups = field(default_factory=Groups)
    episodes: Episodes | None = None
    ptx_data: Prompts | None = None  # what loss.ptx_coef imitates; None: the run's own prompts, their completions
    optimizer: Optimizer = field(default_factory=Optimizer)
    alarms: Alarms = field(default_factory=Alarms)
    monitor: Monitor | None = field(default_factory=Monitor)  # null: no second look
    checkpoint_every: Positive = 20
    gradient_checkpointing: bool = False
    compile: bool = False
    peft: dict[str, Any] | None = None


@dataclass(slots=True)
class Attribute:
    """One thing a label speaks of, its bins and its text."""

    __pydantic_config__: ClassVar = STRICT
    of: str = "reward"  # reward, correct, length, format, or a part of the rewards by its name
    label: str = "<{bin}> "
    bins: Literal["quantile", "edges"] = "edges"
    count: Positive = 5
    edges: list[float] = field(default_factory=lambda: [0.5])
    per_prompt: bool = False  # measured from the mean of the prompt's own samples
    prefer: Literal["high", "low"] = "high"  # which end `best` asks for


@dataclass(slots=True)
class Conditioned:
    __pydantic_config__: ClassVar = STRICT
    kind: str = "conditioned"
    policy: str = "sft"
    prompts: Positive = 2048
    samples: Positive = 8
    token_budget: Positive | None = None
    pool: list[str] | None = None  # stages or files of scored samples, human ratings too; None: sample afresh
    bins: Literal["quantile", "edges"] = "edges"
    count: Positive = 5
    edges: list[float] = field(default_factory=lambda: [0.125, 0.375, 0.625, 0.875])
    label: str = "<{bin}> "  # in front of the prompt
    attributes: dict[str, Attribute] = field(default_factory=dict)  # several labels at once; empty: the reward's alone
    vocabulary: Literal["text", "special"] = "text"  # special: new tokens, with full fine-tuning or trained embeddings
    per_bin: Positive = 4000
    kl_coef: NonNegative = 0.0  # weight of the KL from the policy, asked without a label
    guidance: NonNegative = 1.0  # of labelled over unlabelled logits when sampling under a label; 1: none
    label_dropout: Share = 0.1
    demonstrations: Annotated[int, Field(ge=0)] = 0  # SFT rows scored and added to the pool
    online_rounds: Annotated[int, Field(ge=0)] = 0  # sample under the best label, relabel by what came out, learn again
    online_trainer: dict[str, Any] = field(default_factory=dict)  # what these rounds change of `trainer`
    shuffled_control: bool = True
    filtered_control: bool = False  # imitate the best bin of the same pool, without labels
    trainer: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] | None = None


@dataclass(slots=True)
class OfflineQ:
    """Values from logged samples, and a policy from the values (IQL, ILQL); with a pool nothing is sampled."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "offline_q"
    policy: str = "sft"
    pool: list[str] | None = None  # files of scored rollouts; None: sample afresh
    prompts: Positive = 2048
    samples: Positive = 8
    extract: Literal["awr", "shift"] = "awr"  # regress on exp(beta * (Q - V)), or add beta * (Q - V) to the logits
    expectile: Annotated[float, Field(ge=0.5, lt=1)] = 0.9  # 0.5: the mean of what was logged; to 1: its best
    beta: NonNegative = 10.0
    max_weight: Annotated[float, Field(gt=0)] = 100.0  # awr: the heaviest one token may weigh
    gamma: Share = 1.0
    cql: NonNegative = 0.1  # holds Q down on tokens that no sample chose
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.05  # of the slow copy that V looks at
    batch: Positive = 64  # episodes a step
    value_steps: Positive = 400
    policy_steps: Positive = 200  # awr
    tokens_per_microbatch: Positive = 16_384
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=1e-3))


@dataclass(slots=True)
class Stitch:
    """The stitching benchmark: every method from the same logs, which hold the best walk in no piece."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "stitch"
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    memories: list[Literal["state", "history"]] = field(default_factory=lambda: ["state", "history"])
    methods: list[str] | None = None  # None: all
    medium: Share = 0.6  # what 1→4 pays, against 1 for the best walk; 0.5 is the mean of what follows 2
    loop: Policy = field(default_factory=Policy)  # what grpo, reinforce, ppo and monte_carlo share
    offline_q: OfflineQ = field(default_factory=OfflineQ)
    trainer: dict[str, Any] = field(default_factory=dict)  # sft, feedme, conditions


@dataclass(slots=True)
class Probe:
    """What a condition label does inside the model."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "probe"
    policy: str = "conditioned"
    prompts: Positive = 100  # held-out prompts on which activations are read
    layers: list[int] | None = None  # None: all
    scales: list[float] = field(default_factory=lambda: [-1.0, 0.5, 1.0, 2.0])  # of the steering vector
    samples: Positive = 4


@dataclass(slots=True)
class Evaluate:
    __pydantic_config__: ClassVar = STRICT
    kind: str = "evaluate"
    policies: list[str] | None = None  # None: every policy stage before this one


@dataclass(slots=True)
class Judge:
    """All policies of a comparison on the same held-out prompts; `feedme/control` is the control that feedme keeps."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "judge"
    start: str = "sft"
    methods: list[str] = field(default_factory=list)
    proxy: str | None = None  # a reward model whose score stands beside the run's own


@dataclass(slots=True)
class Compare:
    """Methods from one model at one budget over seeds; each is a block of the YAML."""

    __pydantic_config__: ClassVar = STRICT
    methods: list[str]
    kind: str = "compare"
    start: str = "sft"  # the stage that all of them start from
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    budget: Positive = 100_000  # completion tokens a method may sample, where its block sets no token_budget
    controls: dict[str, str] = field(default_factory=dict)  # method -> what it is held against
    drawn_once: dict[str, str] = field(default_factory=dict)  # method -> the same with all samples drawn up front
    best_of: list[Positive] = field(default_factory=lambda: [4])
    proxy: str | None = None  # a reward model; with proxy_methods, which learn from it under the first seed
    proxy_methods: list[str] = field(default_factory=list)
    stitching: dict[str, str] = field(default_factory=dict)  # method -> its name in the stitching benchmark's table
    stitching_run: str = "runs/stitch/stitch"  # where that table lies; its figures stand beside the methods'
    workers: Positive | None = None  # processes at once; None: one a core, at most 4


STAGE_KINDS: dict[str, type] = {
    "base": Base,
    "sft": Sft,
    "feedme": Feedme,
    "reward_model": RewardModel,
    "ppo": Policy,
    "grpo": Policy,
    "conditioned": Conditioned,
    "probe": Probe,
    "offline_q": OfflineQ,
    "stitch": Stitch,
    "evaluate": Evaluate,
    "judge": Judge,
    "compare": Compare,
}
# What PPO sets where the YAML is silent: InstructGPT's recipe, against GRPO's which are the dataclass's own.
PPO_DEFAULTS: dict[str, Any] = {
    "credit": {"kind": "gae"},
    "kl": {"coef": 0.05, "where": "reward", "kind": "k1"},
    "critic": {},
}


def trains_adapter(block: Any) -> bool:
    """Whether this stage trains a LoRA adapter; not every kind of stage could, and those have no `peft`."""
    return bool(getattr(block, "peft", None))
