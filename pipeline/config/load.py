"""YAML -> typed config. Every mistake is found before anything loads and reported in one line with its key and fix.

Our own blocks are the dataclasses of schema.py. Options that TRL, PEFT or vLLM already name are passed verbatim through
`trainer:`, `peft:` and `vllm:` and checked against that library's fields, read from its source without importing it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.config import describe, schema, sweeps
from pipeline.config.cross_checks import cross_checks
from pipeline.config.library_fields import LORA, block_mistakes
from pipeline.config.mistakes import (
    REMARKS,
    SYNONYMS,
    ConfigError,
    found,
    nearest,
    no_block,
    no_text,
    without_followups,
)
from pipeline.config.presets import PRESETS
from pipeline.config.schema import (
    KINDS,
    STRICT,
    Evaluation,
    Generate,
    Model,
    Policy,
    Positive,
    Program,
    Prompts,
    Sampling,
    Tools,
)
from pipeline.config.source_rewards import with_source_rewards
from pipeline.config.yaml_reader import apply_overrides, read_yaml

# set by the pipeline
OURS = frozenset({"output_dir", "seed", "data_seed", "resume_from_checkpoint", "report_to", "run_name"})


@dataclass(slots=True)
class Config:
    """A complete YAML: settings shared by all stages, and one block per stage."""

    __pydantic_config__: ClassVar = STRICT
    path: str
    """The YAML file."""
    run: str
    """Name of the run; its directory is runs_dir/run."""
    seed: int = 1
    """Seed of all randomness."""
    runs_dir: str = "runs"
    """Directory of all runs."""
    threads: Positive | Literal["auto"] | None = "auto"
    """Threads of torch on CPU; null leaves them to torch; auto does so for a Hub id and over 50M parameters, else 1."""
    trackers: list[Literal["trackio", "tensorboard", "wandb"]] | None = None
    """Experiment trackers; null takes trackio if it is installed, [] none."""
    verifier_dirs: list[str] = field(default_factory=list)
    """Directories with verifiers of your own."""
    model: Model = field(default_factory=Model)
    """The base model."""
    prompts: Prompts = field(default_factory=Prompts)
    """The data set: prompts, demonstrations and tasks of the verifiers."""
    rewards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rewards by name, such as {math_answer: {weight: 1.0}}. The name is a verifier, or the part has a `kind`:
    verifier, learned, function, potential, surrogate, openai_grader, trl_reward, verl_score, open_instruct,
    prime_rubric, length, repetition, missing_eos, format, random, tool_calls, environment. `weight` is 1 unless given.
    Fields of each kind: docs/verifiers.md."""
    generate: Generate = field(default_factory=Generate)
    """The generator: which engine samples, and its settings."""
    sampling: Sampling = field(default_factory=Sampling)
    """How completions are sampled."""
    tools: Tools | None = None
    """Tools that the policy may call while it answers; null samples plain completions."""
    program: Program | None = None
    """An agent's own program, whose chat calls the policy answers; null samples plain completions."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """How policies are evaluated on the held-out prompts."""
    expected_tokens: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    """Stage -> expected mean tokens per completion, which a plan uses until a run has measured it."""
    stages: list[str] = field(default_factory=list)
    """Stages to run, in this order."""
    blocks: dict[str, Any] = field(default_factory=dict)
    """Stage -> the dataclass of its block."""

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run

    def block(self, stage: str) -> Any:
        if stage not in self.blocks:
            raise ConfigError([f"{self.path}: no stage {stage!r}{nearest(stage, self.blocks)}"])
        return self.blocks[stage]


def merge_defaults(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(defaults)
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge_defaults(out[key], value) if both else value
    return out


TOP = {f.name for f in fields(Config)} - {"path", "blocks"}


# --- names: stages, blocks, keys --------------------------------------------------------------------------------------


def _stage_names(raw: Mapping[str, Any], mistakes: list[str]) -> list[str]:
    names = raw.get("stages") or []
    names = [names] if isinstance(names, str) and "," not in names else names
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    mistakes.append(f"stages: expected a list of stage names, as stages: [base, sft, grpo], found {names!r}")
    return []


def _blocks(raw: Mapping[Any, Any], stage_names: Sequence[str], mistakes: list[str]) -> dict[str, Any]:
    """Stage name -> its raw block, for every key that is not a top-level key."""
    blocks: dict[str, Any] = {}
    unknown: list[str] = []
    for key, value in raw.items():
        kind = value.get("kind", key) if isinstance(value, dict) else key
        if key in TOP:
            continue
        if not isinstance(key, str):
            mistakes.append(f"unknown key {key!r}; keys are text")
        elif not isinstance(kind, str) or (kind not in KINDS and key != kind):
            mistakes.append(f"{key}.kind: no stage kind {kind!r}{nearest(str(kind), KINDS)}")
        elif kind in KINDS:
            blocks[key] = value
        elif key not in stage_names:
            unknown.append(key)
    mistakes += [f"unknown key {key!r}{_meant(key, '', blocks, [*TOP, *KINDS, *stage_names])}" for key in unknown]
    for name in dict.fromkeys(stage_names):
        if name not in blocks and name in KINDS and name not in raw:
            blocks[name] = {}
        elif name in raw and name not in blocks and not (isinstance(raw[name], dict) and "kind" in raw[name]):
            mistakes.append(f"stages: {name!r} is no kind of stage{nearest(name, KINDS)}; a block of another name "
                            f"says its kind, as {name}: {{kind: sft}}")  # fmt: skip
        elif name not in raw:
            mistakes.append(f"stages: no block for stage {name!r}{nearest(name, [*blocks, *KINDS])}")
    return blocks


def _meant(key: str, where: str, blocks: Mapping[str, Any], known: Sequence[str]) -> str:
    """The hint for an unknown key: the key that it is a synonym of, the block it belongs to, or the nearest name.

    where: the dotted name of the block that contains it; "" at the top level. blocks: stage -> raw block.
    """
    stage = where.partition(".")[0]
    theirs = key.lower().replace("-", "_")
    synonyms = SYNONYMS.get(theirs, ())
    if where and theirs == "name":  # the run's at the top level only
        return f"; it is {where}.path here" if "path" in known else _listed(key, known, _kind(stage, blocks))
    if key == "trainer" and stage in blocks and "optimizer.learning_rate" in _paths(_kind(stage, blocks)):
        return (f"; this stage is not TRL's trainer: its keys are {stage}.optimizer.learning_rate, {stage}.steps and "
                f"so on, as listed by: whetstone config {_kind(stage, blocks)}")  # fmt: skip
    if not where:  # a whole block of the top level rather than the same key of one stage
        synonyms = tuple(sorted(synonyms, key=lambda ours: ours[0] != "/" or ours[1:] not in TOP))
    for ours in synonyms:  # first in its own block: lr in a critic block means the critic's
        if where and ours.rpartition(".")[2].lstrip("/") in known:
            remark = REMARKS.get((theirs, ours), "").format(block=f"{stage}.")
            return f"; it is {where}.{ours.rpartition('.')[2]} here{remark}"
    stages = [stage] if stage in blocks else [*blocks, "grpo"]
    for ours in synonyms:
        for name in stages if ours[0] != "/" else [""]:
            if ours[1:] in _paths("") if ours[0] == "/" else ours in _paths(_kind(name, blocks)):
                dotted = ours.lstrip("/") if ours[0] == "/" else f"{name}.{ours}"
                remark = REMARKS.get((theirs, ours), "").format(block=f"{name}.")
                place = f"it is {dotted} here" if where or ours[0] == "/" else f"it belongs in a stage: {dotted}"
                return f"; {place}{remark}"
    for name in [*stages, *([""] if where else [])]:
        found = next((path for path in _paths(_kind(name, blocks)) if path.rpartition(".")[2] == key), None)
        if found is not None:
            full = f"{name}.{found}" if name else found
            return (
                f"; {key} belongs in {'a stage' if not where else full.rpartition('.')[0] or 'the top level'}: {full}"
            )
    return _listed(key, known, _kind(stage, blocks))


def _listed(key: str, known: Sequence[str], block: str) -> str:
    return nearest(key, known) or f"; the keys are listed by: whetstone config {block}".rstrip()


def _kind(stage: str, blocks: Mapping[str, Any]) -> str:
    """The kind of a stage's raw block; "" stands for the top level."""
    block = blocks.get(stage)
    return block.get("kind", stage) if isinstance(block, Mapping) else stage


@cache
def _paths(kind: str) -> tuple[str, ...]:
    """Dotted keys of a kind of stage, or of the top level for ""."""
    if not kind:
        return tuple(path for path, _ in describe.walk(Config, "") if path.partition(".")[0] in TOP)
    known = KINDS[kind]
    own = [path for path, _ in describe.walk(known.schema, "")]
    trl = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs",
           "max_steps", "max_length", "lr_scheduler_type", "warmup_steps", "max_grad_norm")  # fmt: skip
    return (*own, *(f"trainer.{name}" for name in trl if known.trl_config))


# --- values -----------------------------------------------------------------------------------------------------------


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _validate(cls: type, raw: Any, where: str, mistakes: list[str], blocks: Mapping[str, Any]) -> Any:
    """Build a dataclass from a mapping and add every mistake, with its dotted key, to `mistakes`.

    Returns the dataclass without the wrong values, or None if it cannot be built.
    """
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        mistakes.append(no_block(where, raw))
        return None
    raw = _with_lists(cls, raw)
    try:
        return _adapter(cls).validate_python(raw)
    except ValidationError as exc:
        for error in _of_the_form_given(exc.errors(include_url=False)):
            mistakes.append(_line(cls, where, error, blocks))
        try:
            return _adapter(cls).validate_python(_without(raw, [error["loc"] for error in exc.errors()]))
        except ValidationError:
            return None


def _of_the_form_given(errors: Sequence[Any]) -> list[Any]:
    """Of a key that is true, false or a block, pydantic lists the mistakes of both forms: keep those of the user's."""
    switches = {error["loc"][:-1] for error in errors if error["loc"][-1:] == ("bool",)}
    return [
        error for error in errors
        if not (error["loc"][-1:] == ("bool",) and isinstance(error["input"], dict))
        and not (error["loc"][:-1] in switches and error["type"] == "dataclass_type")
    ]  # fmt: skip


def _line(cls: type, where: str, error: Any, blocks: Mapping[str, Any]) -> str:
    """Rewrite one of pydantic's errors as a line for the user."""
    *inside, last = error["loc"] or ("",)
    unknown = error["type"] in ("extra_forbidden", "unexpected_keyword_argument")  # `last` is a user's key
    loc = [str(part) for part in inside if not _is_type_tag(part)]
    loc += [str(last)] if unknown or not _is_type_tag(last) else []
    dotted = ".".join(filter(None, [where, *loc]))
    if unknown:
        parent = ".".join(filter(None, [where, *loc[:-1]]))
        known = sorted(_fields_at(cls, loc[:-1]))
        return f"{parent or 'top level'}: unknown key {loc[-1]!r}{_meant(loc[-1], parent, blocks, known)}"
    if error["type"] == "missing":
        return f"{dotted}: missing"
    if last == "bool":
        return f"{dotted}: expected true, false or a block of keys, found {found(error['input'])}"
    if error["type"] in ("dataclass_type", "dataclass_exact_type", "dict_type"):
        return no_block(dotted, error["input"])
    if error["type"] == "list_type":
        return f"{dotted}: expected a list, found {found(error['input'])}"
    if error["type"] == "string_type":
        return f"{dotted}: {no_text(error['input'])}"
    if error["type"] == "literal_error":
        known = [word for n, word in enumerate(str(error["ctx"]["expected"]).split("'")) if n % 2]
        if cls is Config and loc[0] == "trackers" and str(error["input"]).lower() in ("none", "off", "no", "false"):
            return "trackers: no tracker is [], as in trackers: [] or trackers=[] on the command line"
        return f"{dotted}: no choice {error['input']!r}{nearest(str(error['input']), known)}"
    return f"{dotted}: {error['msg'][0].lower()}{error['msg'][1:]}, found {found(error['input'])}"


def _with_lists(cls: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a single value into a list of one where a list is expected."""
    out = dict(raw)
    nested = describe.nested_blocks(cls)
    for f in fields(cls):
        value, wanted = out.get(f.name), str(f.type)
        if wanted.startswith("list[") and value is not None and not isinstance(value, list):
            if not isinstance(value, dict) or "dict" in wanted:
                out[f.name] = [value]
        elif f.name in nested and isinstance(value, dict) and not wanted.startswith("dict["):
            out[f.name] = _with_lists(nested[f.name], value)
        elif f.name in nested and isinstance(value, dict):
            out[f.name] = {k: _with_lists(nested[f.name], v) if isinstance(v, dict) else v for k, v in value.items()}
    return out


def _without(raw: dict[str, Any], locations: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """A copy without the values at these locations; if a location is inside a list, without the whole list."""
    out = copy.deepcopy(raw)
    for location in locations:
        inner: Any = out
        for part in location:
            if isinstance(inner, dict) and isinstance(inner.get(part), dict):
                inner = inner[part]
            elif isinstance(inner, dict) and part in inner:
                del inner[part]
                break
    return out


BLOCK_CLASSES = {n for n, v in vars(schema).items() if isinstance(v, type) and hasattr(v, "__pydantic_config__")}


def _is_type_tag(part: Any) -> bool:
    return isinstance(part, str) and (part in BLOCK_CLASSES or "[" in part or part in ("str", "int", "float", "bool"))


def _fields_at(cls: type, loc: Sequence[str]) -> set[str]:
    """Keys of the block at this location inside a block; empty if there is no such block."""
    rest = iter(loc)
    for name in rest:
        inner = describe.nested_blocks(cls).get(name)
        if inner is None:
            return set()
        if next(str(f.type) for f in fields(cls) if f.name == name).startswith("dict["):
            next(rest, None)  # the user's name for this block
        cls = inner
    return {f.name for f in fields(cls)}


# --- a whole YAML -----------------------------------------------------------------------------------------------------


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The typed config of one YAML with command-line overrides. Raises ConfigError with every mistake."""
    config, mistakes = read(path, overrides)
    if mistakes or config is None:
        raise ConfigError(mistakes)
    return config


def read(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config | None, list[str]]:
    """The config and its mistakes. If there are mistakes, valid values are kept and the others take their defaults.

    A plan can thus continue and find further mistakes. Raises ConfigError if there is no usable YAML.
    """
    raw = read_yaml(path)
    apply_overrides(raw, overrides)
    mistakes: list[str] = []
    sweeps.expand(raw, mistakes)
    top = {key: value for key, value in raw.items() if key in TOP}
    top["stages"] = stage_names = _stage_names(raw, mistakes)
    blocks = _blocks(raw, stage_names, mistakes)
    if "run" not in top:
        mistakes.append("run: missing; name the run, as in run: demo")
    fixed = {"run": "unnamed", "path": str(path)}
    config = _validate(Config, {**fixed, **top, "path": str(path)}, "", mistakes, blocks)
    typed = {name: _stage(name, value, mistakes, blocks) for name, value in blocks.items()}
    if config is not None:
        config.blocks = {name: block for name, block in typed.items() if block is not None}
        config.stages = [name for name in config.stages if name in config.blocks]
        samplers = [name for name in blocks if KINDS[_kind(name, blocks)].samples]
        mistakes += [f"expected_tokens: {name!r} is no stage that samples{nearest(name, samplers)}"
                     for name in config.expected_tokens if name not in samplers]  # fmt: skip
        mistakes += with_source_rewards(config)
        mistakes += without_followups(cross_checks(config), mistakes)
    return config, [f"{path}: {m}" for m in dict.fromkeys(mistakes)]


def _stage(name: str, raw: Any, mistakes: list[str], blocks: Mapping[str, Any]) -> Any:
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        mistakes.append(no_block(name, raw))
        return None
    kind = KINDS[raw.get("kind", name)]
    given = merge_defaults(_preset_of(kind, raw), raw)
    block = _validate(kind.schema, {**given, "kind": kind.name}, name, mistakes, blocks)
    if kind.trl_config:
        for key in ("trainer", "online_trainer"):
            mistakes += block_mistakes(f"{name}.{key}", raw.get(key), kind.trl_config, ours=OURS)
    if any(field.name == "peft" for field in fields(kind.schema)):
        mistakes += block_mistakes(f"{name}.peft", raw.get("peft"), LORA)
    return block


def _preset_of(kind: schema.StageKind, raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Values that apply if the YAML does not set them: those of the kind, overridden by those of the named method."""
    method = raw.get("method")
    if not issubclass(kind.schema, Policy) or not isinstance(method, str) or method not in PRESETS:
        return kind.defaults
    return merge_defaults(kind.defaults, PRESETS[method].sets)
