"""YAML -> typed config. Every mistake is found before anything loads, told in one line with its key and its mend.

Our own blocks are the dataclasses below. What TRL, PEFT or vLLM already name passes verbatim through `trainer:`,
`peft:` and `vllm:`, checked against that library's own fields, read from its source without importing it.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
STRICT = ConfigDict(extra="forbid")


class ConfigError(ValueError):
    """The user's mistakes, one line each. The command line prints them and exits 2."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("\n".join(self.mistakes))


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
    prompt: str = "prompt"  # the column with the prompt, and a template around it
    completion: str = "completion"
    template: str | None = None
    task: dict[str, str] | None = None  # the verifier's field -> the column; None: the column `task`, or all columns
    system: str | None = None
    chat: bool = False  # put a plain-text prompt into the chat template as the user's turn
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
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    batch: Positive = 256  # sequences at once, transformers only
    canary_tolerance: Annotated[float, Field(gt=0)] | None = None  # None: by dtype, 1e-3 float32, 0.25 bfloat16
    vllm: dict[str, Any] = field(default_factory=dict)


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
    trainer: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] | None = None


@dataclass(slots=True)
class Feedme:
    __pydantic_config__: ClassVar = STRICT
    kind: str = "feedme"
    policy: str = "sft"
    rounds: Positive = 2
    prompts: Positive = 1024
    samples: Positive = 8
    filters: list[str | dict[str, Any]] = field(default_factory=lambda: [{"threshold": 1.0}, "dedup", {"cap": 4}])
    start: Literal["last", "base"] = "last"
    pool: Literal["replace", "accumulate"] = "replace"
    sft_share: Share = 0.0
    random_control: bool = True  # the same chain once more, keeping as many per prompt, chosen blindly
    trainer: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] | None = None


@dataclass(slots=True)
class RewardModel:
    __pydantic_config__: ClassVar = STRICT
    kind: str = "reward_model"
    policy: str = "sft"
    init: str | None = None  # the backbone; None: the policy
    data: Prompts | None = None  # a preference data set; None: pairs from scored samples
    prompts: Positive = 2048
    samples: Positive = 8
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
    whiten: bool = True  # gae and global_baseline
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
class Alarms:
    """Past these a run stops with exit 3 and says why."""

    __pydantic_config__: ClassVar = STRICT
    mismatch_mean_abs: Annotated[float, Field(gt=0)] = 0.1
    checker_broken_share: Share = 0.2
    no_signal_steps: Positive = 20  # steps in a row without one group that teaches
    loss_abs: Annotated[float, Field(gt=0)] = 1e4


@dataclass(slots=True)
class Policy:
    """A policy-optimisation stage: PPO and GRPO are settings of it."""

    __pydantic_config__: ClassVar = STRICT
    kind: str = "grpo"
    policy: str = "sft"
    reward: dict[str, dict[str, Any]] | None = None  # None: the run's rewards; PPO: the learned reward
    steps: Positive = 100
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
    optimizer: Optimizer = field(default_factory=Optimizer)
    alarms: Alarms = field(default_factory=Alarms)
    checkpoint_every: Positive = 20
    gradient_checkpointing: bool = False
    compile: bool = False
    peft: dict[str, Any] | None = None


@dataclass(slots=True)
class Conditioned:
    __pydantic_config__: ClassVar = STRICT
    kind: str = "conditioned"
    policy: str = "sft"
    prompts: Positive = 2048
    samples: Positive = 8
    pool: list[str] | None = None  # files of scored rollouts; None: sample afresh
    bins: Literal["quantile", "edges"] = "edges"
    count: Positive = 5
    edges: list[float] = field(default_factory=lambda: [0.125, 0.375, 0.625, 0.875])
    label: str = "<{bin}> "  # plain text of the existing vocabulary, in front of the prompt
    per_bin: Positive = 4000
    label_dropout: Share = 0.1
    demonstrations: Annotated[int, Field(ge=0)] = 0  # SFT rows scored and added to the pool
    online_rounds: Annotated[int, Field(ge=0)] = 0
    shuffled_control: bool = True
    trainer: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] | None = None


@dataclass(slots=True)
class Evaluate:
    __pydantic_config__: ClassVar = STRICT
    kind: str = "evaluate"
    policies: list[str] | None = None  # None: every policy stage before this one


STAGE_KINDS: dict[str, type] = {
    "base": Base,
    "sft": Sft,
    "feedme": Feedme,
    "reward_model": RewardModel,
    "ppo": Policy,
    "grpo": Policy,
    "conditioned": Conditioned,
    "evaluate": Evaluate,
}
# What PPO sets where the YAML is silent: InstructGPT's recipe, against GRPO's which are the dataclass's own.
PPO_DEFAULTS: dict[str, Any] = {
    "credit": {"kind": "gae"},
    "kl": {"coef": 0.05, "where": "reward", "kind": "k1"},
    "critic": {},
}
TRAINERS = {  # the class whose fields a `trainer:` block may name
    "sft": "trl.trainer.sft_config:SFTConfig",
    "feedme": "trl.trainer.sft_config:SFTConfig",
    "conditioned": "trl.trainer.sft_config:SFTConfig",
    "reward_model": "trl.trainer.reward_config:RewardConfig",
}
OURS = {"output_dir", "seed", "data_seed", "resume_from_checkpoint", "report_to", "run_name"}  # set by the pipeline


@dataclass(slots=True)
class Config:
    __pydantic_config__: ClassVar = STRICT
    path: str
    run: str
    seed: int = 1
    runs_dir: str = "runs"
    threads: Positive | None = 1  # torch threads on CPU; beside a busy process two are slower than one
    trackers: list[Literal["trackio", "tensorboard", "wandb"]] = field(default_factory=list)
    verifier_dirs: list[str] = field(default_factory=list)
    model: Model = field(default_factory=Model)
    prompts: Prompts = field(default_factory=Prompts)
    rewards: dict[str, dict[str, Any]] = field(default_factory=dict)
    generate: Generate = field(default_factory=Generate)
    sampling: Sampling = field(default_factory=Sampling)
    evaluation: Evaluation = field(default_factory=Evaluation)
    stages: list[str] = field(default_factory=list)
    blocks: dict[str, Any] = field(default_factory=dict)  # stage name -> its dataclass

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run

    def block(self, stage: str) -> Any:
        if stage not in self.blocks:
            raise ConfigError([f"{self.path}: no stage {stage!r}{nearest(stage, self.blocks)}"])
        return self.blocks[stage]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error line: the nearest known name, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; have: {', '.join(known)}"


class Loader(yaml.SafeLoader):
    """YAML 1.1, but `1e-6` is a number: PyYAML alone reads it as text. A key given twice is a mistake."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _unique_mapping(loader: Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (dict, list)):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def read_yaml(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError([f"{path}: no such config file" + (nearest(str(path), siblings) if siblings else "")])
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.MarkedYAMLError as exc:
        line = f":{exc.problem_mark.line + 1}" if exc.problem_mark else ""
        raise ConfigError([f"{path}{line}: {exc.problem or exc}"]) from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError([f"{path}: not readable as YAML: {' '.join(str(exc).split())}"]) from exc
    if not isinstance(raw, dict):
        raise ConfigError([f"{path}: expected a mapping of keys at the top, found {type(raw).__name__}"])
    return raw


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """`a.b=c` into the raw mapping, c read as YAML."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError([f"{text!r} on the command line: expected key=value, as in ppo.steps=10"])
        try:
            parsed = yaml.load(value, Loader)
        except yaml.YAMLError as exc:
            raise ConfigError([f"{text!r} on the command line: the value is not YAML"]) from exc
        *parents, last = key.split(".")
        place = raw
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise ConfigError([f"{text!r} on the command line: {parent!r} is not a block of keys"])
        place[last] = parsed


@cache
def library_fields(target: str) -> frozenset[str]:
    """Field names of a dataclass `module:Class` and its bases, from source: importing TRL costs seconds."""
    module, class_name = target.split(":")
    spec = None
    try:
        top = importlib.util.find_spec(module.split(".")[0])
        if top is not None and top.submodule_search_locations:
            source = Path(next(iter(top.submodule_search_locations)), *module.split(".")[1:])
            source = source.with_suffix(".py") if source.with_suffix(".py").is_file() else source / "__init__.py"
            spec = source if source.is_file() else None
    except ImportError:
        spec = None
    if spec is None:
        return frozenset()
    tree = ast.parse(spec.read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name: (node.module or "", node.level)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            own = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
            for base in node.bases:
                if not isinstance(base, ast.Name):
                    continue
                where, level = imported.get(base.id, (module, 0))
                if level:
                    where = ".".join([*module.split(".")[:-level], *([where] if where else [])])
                if base.id == "TrainingArguments":
                    where = "transformers.training_args"
                own |= library_fields(f"{where}:{base.id}")
            return frozenset(own)
    return frozenset()


PASSED_THROUGH = {"peft": "peft.tuners.lora.config:LoraConfig", "vllm": "vllm.engine.arg_utils:EngineArgs"}


def _check_library_block(where: str, block: Any, target: str, mistakes: list[str]) -> None:
    known = library_fields(target)
    if not known or not isinstance(block, Mapping):
        return  # the library is not installed (its absence is told where it is needed), or a type error told already
    for key in block:
        if key in OURS and "trl" in target:
            mistakes.append(f"{where}.{key}: the pipeline sets this itself; remove it")
        elif key not in known:
            mistakes.append(f"{where}: unknown key {key!r}{nearest(str(key), known)}")


def _validate(cls: type, raw: Any, where: str, mistakes: list[str]) -> Any:
    """A dataclass from a mapping, or None with every mistake noted by dotted key."""
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        mistakes.append(f"{where}: expected a block of keys, found {raw!r}")
        return None
    try:
        return TypeAdapter(cls).validate_python(raw)
    except ValidationError as exc:
        for error in exc.errors():
            loc = [str(part) for part in error["loc"] if not _is_type_tag(part)]
            dotted = ".".join([where, *loc]) if where else ".".join(loc)
            if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                parent = ".".join(dotted.split(".")[:-1]) or "top level"
                known = _fields_at(cls, loc[:-1])
                mistakes.append(f"{parent}: unknown key {loc[-1]!r}{nearest(loc[-1], known)}")
            else:
                message = error["msg"][0].lower() + error["msg"][1:]
                mistakes.append(f"{dotted}: {message}, found {error['input']!r}")
        return None


def _is_type_tag(part: Any) -> bool:
    return isinstance(part, str) and (part in STAGE_CLASS_NAMES or "[" in part or part in ("str", "int", "float"))


def _fields_at(cls: type, loc: Sequence[str]) -> set[str]:
    for name in loc:
        inner = next((f for f in fields(cls) if f.name == name), None)
        if inner is None:
            return set()
        match = re.search(r"\b(" + "|".join(STAGE_CLASS_NAMES) + r")\b", str(inner.type))
        if match is None:
            return set()
        cls = globals()[match.group(1)]
    return {f.name for f in fields(cls)}


STAGE_CLASS_NAMES = {n for n, v in list(globals().items()) if isinstance(v, type) and hasattr(v, "__pydantic_config__")}


def _merge(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(defaults)
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The typed config of one YAML with command-line overrides. Raises ConfigError with every mistake."""
    raw = read_yaml(path)
    apply_overrides(raw, overrides)
    mistakes: list[str] = []
    known_top = {f.name for f in fields(Config)} - {"path", "blocks"}
    stage_names = raw.get("stages") or []
    if not isinstance(stage_names, list) or not all(isinstance(s, str) for s in stage_names):
        raise ConfigError([f"{path}: stages: expected a list of stage names, found {stage_names!r}"])
    top = {k: v for k, v in raw.items() if k in known_top}
    blocks: dict[str, Any] = {}
    for key, value in raw.items():
        if key in known_top:
            continue
        kind = value.get("kind", key) if isinstance(value, dict) else key
        if kind not in STAGE_KINDS:
            mistakes.append(f"unknown key {key!r}{nearest(str(key), known_top | set(STAGE_KINDS) | set(stage_names))}")
            continue
        blocks[key] = value
    for name in stage_names:
        if name not in blocks and name in STAGE_KINDS:
            blocks[name] = {}
        elif name not in blocks and name not in raw:
            mistakes.append(f"stages: no block for stage {name!r}{nearest(name, [*blocks, *STAGE_KINDS])}")
    if "run" not in top:
        mistakes.append("run: missing; name the run, as in run: demo")
    config = _validate(Config, {**top, "run": top.get("run", "?"), "path": str(path)}, "", mistakes)
    typed = {name: _stage(name, value, mistakes) for name, value in blocks.items()}
    if config is not None:
        config.blocks = typed
        mistakes += _cross_checks(config)
    if mistakes:
        raise ConfigError([f"{path}: {m}" for m in mistakes])
    return config


def _stage(name: str, raw: Any, mistakes: list[str]) -> Any:
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        mistakes.append(f"{name}: expected a block of keys, found {raw!r}")
        return None
    kind = raw.get("kind", name)
    given = _merge(PPO_DEFAULTS, raw) if kind == "ppo" else raw
    block = _validate(STAGE_KINDS[kind], {**given, "kind": kind}, name, mistakes)
    if kind in TRAINERS:
        _check_library_block(f"{name}.trainer", raw.get("trainer"), TRAINERS[kind], mistakes)
    _check_library_block(f"{name}.peft", raw.get("peft"), PASSED_THROUGH["peft"], mistakes)
    return block


def _cross_checks(config: Config) -> list[str]:
    """What no single field can say."""
    out: list[str] = []
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", config.run) or ".." in config.run:
        out.append(f"run: {config.run!r} must be a name of letters, digits, '.', '_', '-'")
    if "base" in config.stages and (config.model.path is None) == (config.model.tiny is None):
        out.append("model: give either path (a local directory or Hub id) or tiny (a model made here)")
    tiny = config.model.tiny
    if tiny and tiny.hidden_size % tiny.num_attention_heads:
        out.append(f"model.tiny: hidden_size {tiny.hidden_size} is not divisible by {tiny.num_attention_heads} heads")
    if config.prompts.path and config.prompts.procedural:
        out.append("prompts: give path or procedural, not both")
    duplicates = {s for s in config.stages if config.stages.count(s) > 1}
    if duplicates:
        out.append(f"stages: {sorted(duplicates)[0]!r} is listed twice; give the second a block and name of its own")
    _check_library_block("generate.vllm", config.generate.vllm, PASSED_THROUGH["vllm"], out)
    for name, block in config.blocks.items():
        if isinstance(block, Policy):
            out += _policy_checks(name, block)
        if isinstance(block, Conditioned) and block.bins == "edges" and block.edges != sorted(set(block.edges)):
            out.append(f"{name}.edges: must rise, found {block.edges}")
    return out


def _policy_checks(name: str, block: Policy) -> list[str]:
    out = []
    total = block.prompts * block.samples
    if total % block.minibatches:
        out.append(f"{name}: {block.prompts} prompts x {block.samples} samples = {total} is not divisible by "
                   f"minibatches {block.minibatches}")  # fmt: skip
    if block.credit.kind in ("group", "leave_one_out") and block.samples < 2:
        out.append(f"{name}.samples: {block.credit.kind} credit compares the samples of a prompt; give at least 2")
    if block.credit.kind == "gae" and block.critic is None:
        out.append(f"{name}.critic: gae credit needs a critic; add `critic: {{}}`, or choose another credit.kind")
    if block.kl.where == "reward" and block.kl.kind != "k1" and block.kl.coef:
        out.append(f"{name}.kl.kind: a reward penalty is k1 (its mean is the KL); found {block.kl.kind!r}")
    return out
