"""YAML -> typed config. Every mistake is found before anything loads, told in one line with its key and its mend.

Our own blocks are the dataclasses below. What TRL, PEFT or vLLM already name passes verbatim through `trainer:`,
`peft:` and `vllm:`, checked against that library's own fields, read from its source without importing it.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.config import schema
from pipeline.config.library_fields import block_mistakes, nearest
from pipeline.config.schema import (
    KINDS,
    STRICT,
    Attribute,
    Conditioned,
    Evaluation,
    Generate,
    Model,
    Policy,
    Positive,
    Prompts,
    Sampling,
)


class ConfigError(ValueError):
    """The user's mistakes, one line each. The command line prints them and exits 2."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("\n".join(self.mistakes))


MEASURES = ("reward", "correct", "format", "length")  # what an attribute may speak of beside parts of the rewards
MOST_TINY = 1e9  # of parameters: beyond it a slip of the keyboard takes the machine's memory
# set by the pipeline
OURS = frozenset({"output_dir", "seed", "data_seed", "resume_from_checkpoint", "report_to", "run_name"})


@dataclass(slots=True)
class Config:
    __pydantic_config__: ClassVar = STRICT
    path: str
    run: str
    seed: int = 1
    runs_dir: str = "runs"
    threads: Positive | None = 1  # torch threads on CPU; beside a busy process two are slower than one
    # None: trackio, where it is installed; []: none
    trackers: list[Literal["trackio", "tensorboard", "wandb"]] | None = None
    verifier_dirs: list[str] = field(default_factory=list)
    model: Model = field(default_factory=Model)
    prompts: Prompts = field(default_factory=Prompts)
    rewards: dict[str, dict[str, Any]] = field(default_factory=dict)
    generate: Generate = field(default_factory=Generate)
    sampling: Sampling = field(default_factory=Sampling)
    evaluation: Evaluation = field(default_factory=Evaluation)
    # completion tokens a sample has on average, by stage: what a plan goes by until a run has shown it
    expected_tokens: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    blocks: dict[str, Any] = field(default_factory=dict)  # stage name -> its dataclass

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run

    def block(self, stage: str) -> Any:
        if stage not in self.blocks:
            raise ConfigError([f"{self.path}: no stage {stage!r}{nearest(stage, self.blocks)}"])
        return self.blocks[stage]


class Loader(yaml.SafeLoader):
    """YAML 1.1, but `1e-6` is a number: PyYAML alone reads it as text. A key given twice is a mistake."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as exc:  # PyYAML's own, of a date or number that is none
            reason = f"{node.value!r} is not readable ({exc}); put text in quotes"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from exc


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _unique_mapping(loader: Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
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
            reason = exc.problem if isinstance(exc, yaml.constructor.ConstructorError) else "the value is not YAML"
            raise ConfigError([f"{text!r} on the command line: {reason}"]) from exc
        *parents, last = key.split(".")
        place = raw
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise ConfigError([f"{text!r} on the command line: {parent!r} is not a block of keys"])
        place[last] = parsed


PASSED_THROUGH = {"peft": "peft.tuners.lora.config:LoraConfig", "vllm": "vllm.engine.arg_utils:EngineArgs"}


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _validate(cls: type, raw: Any, where: str, mistakes: list[str]) -> Any:
    """A dataclass from a mapping, every mistake noted by dotted key; what is wrong is left out of it, or it is None."""
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        mistakes.append(f"{where}: expected a block of keys, found {raw!r}")
        return None
    try:
        return _adapter(cls).validate_python(raw)
    except ValidationError as exc:
        for error in exc.errors():
            *inside, last = error["loc"] or ("",)
            unknown = error["type"] in ("extra_forbidden", "unexpected_keyword_argument")  # `last` is what a user typed
            loc = [str(part) for part in inside if not _is_type_tag(part)]
            loc += [str(last)] if unknown or not _is_type_tag(last) else []
            dotted = ".".join([where, *loc]) if where else ".".join(loc)
            if unknown:
                parent = ".".join(filter(None, [where, *loc[:-1]])) or "top level"
                known = _fields_at(cls, loc[:-1])
                mistakes.append(f"{parent}: unknown key {loc[-1]!r}{nearest(loc[-1], known)}")
            else:
                message = error["msg"][0].lower() + error["msg"][1:]
                mistakes.append(f"{dotted}: {message}, found {error['input']!r}")
        try:
            return _adapter(cls).validate_python(_without(raw, [error["loc"] for error in exc.errors()]))
        except ValidationError:
            return None


def _without(raw: dict[str, Any], places: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """A copy less the values at these places; of a place inside a list, less the list."""
    out = copy.deepcopy(raw)
    for place in places:
        inner: Any = out
        for part in place:
            if isinstance(inner, dict) and isinstance(inner.get(part), dict):
                inner = inner[part]
            elif isinstance(inner, dict) and part in inner:
                del inner[part]
                break
    return out


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
        cls = getattr(schema, match.group(1))
    return {f.name for f in fields(cls)}


STAGE_CLASS_NAMES = {n for n, v in vars(schema).items() if isinstance(v, type) and hasattr(v, "__pydantic_config__")}


def merge_defaults(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(defaults)
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge_defaults(out[key], value) if both else value
    return out


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The typed config of one YAML with command-line overrides. Raises ConfigError with every mistake."""
    config, mistakes = read(path, overrides)
    if mistakes or config is None:
        raise ConfigError(mistakes)
    return config


def read(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config | None, list[str]]:
    """The config and its mistakes. With mistakes, what is still sound of it stands in it, the rest by default.

    So that a plan can go on and find the mistakes beyond. Raises ConfigError where there is no YAML to speak of.
    """
    raw = read_yaml(path)
    apply_overrides(raw, overrides)
    mistakes: list[str] = []
    top = {key: value for key, value in raw.items() if key in TOP}
    top["stages"] = stage_names = _stage_names(raw, mistakes)
    blocks = _blocks(raw, stage_names, mistakes)
    if "run" not in top:
        mistakes.append("run: missing; name the run, as in run: demo")
    fixed = {"run": "unnamed", "path": str(path)}
    config = _validate(Config, {**fixed, **top, "path": str(path)}, "", mistakes)
    typed = {name: _stage(name, value, mistakes) for name, value in blocks.items()}
    if config is not None:
        config.blocks = {name: block for name, block in typed.items() if block is not None}
        config.stages = [name for name in config.stages if name in config.blocks]
        mistakes += _cross_checks(config)
    return config, [f"{path}: {m}" for m in mistakes]


TOP = {f.name for f in fields(Config)} - {"path", "blocks"}


def _stage_names(raw: Mapping[str, Any], mistakes: list[str]) -> list[str]:
    names = raw.get("stages") or []
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    mistakes.append(f"stages: expected a list of stage names, found {names!r}")
    return []


def _blocks(raw: Mapping[Any, Any], stage_names: Sequence[str], mistakes: list[str]) -> dict[str, Any]:
    """Stage name -> its raw block, for every key that is no top-level one."""
    blocks: dict[str, Any] = {}
    for key, value in raw.items():
        kind = value.get("kind", key) if isinstance(value, dict) else key
        if key in TOP:
            continue
        if not isinstance(key, str):
            mistakes.append(f"unknown key {key!r}; keys are text")
        elif not isinstance(kind, str) or (kind not in KINDS and key != kind):
            mistakes.append(f"{key}.kind: no stage kind {kind!r}{nearest(str(kind), KINDS)}")
        elif kind not in KINDS:
            mistakes.append(f"unknown key {key!r}{nearest(key, TOP | set(KINDS) | set(stage_names))}")
        else:
            blocks[key] = value
    for name in stage_names:
        if name not in blocks and name in KINDS and name not in raw:
            blocks[name] = {}
        elif name not in raw:
            mistakes.append(f"stages: no block for stage {name!r}{nearest(name, [*blocks, *KINDS])}")
    return blocks


def _stage(name: str, raw: Any, mistakes: list[str]) -> Any:
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        mistakes.append(f"{name}: expected a block of keys, found {raw!r}")
        return None
    kind = raw.get("kind", name)
    given = merge_defaults(KINDS[kind].defaults, raw)
    block = _validate(KINDS[kind].schema, {**given, "kind": kind}, name, mistakes)
    if KINDS[kind].trl_config:
        for key in ("trainer", "online_trainer"):
            mistakes += block_mistakes(f"{name}.{key}", raw.get(key), KINDS[kind].trl_config, ours=OURS)
    mistakes += block_mistakes(f"{name}.peft", raw.get("peft"), PASSED_THROUGH["peft"])
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
    if tiny and tiny.parameters > MOST_TINY:
        out.append(f"model.tiny: {tiny.parameters:.3g} parameters; a model made here has at most {MOST_TINY:.3g}")
    if config.prompts.path and config.prompts.procedural:
        out.append("prompts: give path or procedural, not both")
    duplicates = {s for s in config.stages if config.stages.count(s) > 1}
    if duplicates:
        out.append(f"stages: {sorted(duplicates)[0]!r} is listed twice; give the second a block and name of its own")
    if (config.generate.backend == "vllm_server") != bool(config.generate.url):
        out.append("generate: backend vllm_server and url go together, as in {backend: vllm_server, "
                   "url: http://localhost:8000}")  # fmt: skip
    if config.evaluation.k > config.evaluation.samples:
        out.append(f"evaluation.k: pass@{config.evaluation.k} needs as many samples; evaluation.samples is "
                   f"{config.evaluation.samples}")  # fmt: skip
    if config.prompts.procedural and config.prompts.heldout_split:
        out.append("prompts: procedural rows have no splits; give heldout (a share) or heldout_path")
    samplers = [name for name, block in config.blocks.items() if KINDS[block.kind].samples]
    out += [f"expected_tokens: {name!r} is no stage that samples{nearest(name, samplers)}"
            for name in config.expected_tokens if name not in samplers]  # fmt: skip
    out += _quantization_mistakes(config)
    out += block_mistakes("generate.vllm", config.generate.vllm, PASSED_THROUGH["vllm"])
    for name, block in config.blocks.items():
        if isinstance(block, Policy):
            out += _policy_checks(name, block, config)
        if isinstance(block, Conditioned):
            out += _label_checks(name, block, config)
    return out


def _label_checks(name: str, block: Conditioned, config: Config) -> list[str]:
    """Of what a label speaks of: the attributes, or the reward alone."""
    out: list[str] = []
    known = [*MEASURES, *config.rewards]
    parts: dict[str, Conditioned | Attribute] = {f"{name}.attributes.{key}": a for key, a in block.attributes.items()}
    for where, part in (parts or {name: block}).items():
        if part.bins == "edges" and part.edges != sorted(set(part.edges)):
            out.append(f"{where}.edges: must rise, found {part.edges}")
        if "{bin}" not in part.label:
            out.append(f"{where}.label: {part.label!r} must hold {{bin}}, where the bin's number goes")
        if isinstance(part, Attribute) and part.of not in known:
            out.append(f"{where}.of: nothing called {part.of!r} is measured{nearest(part.of, known)}")
    return out


def _quantization_mistakes(config: Config) -> list[str]:
    if config.model.quantization is None:
        return []
    if not any(schema.trains_adapter(block) for block in config.blocks.values()):
        return ["model.quantization: 4 bits do not learn, and no stage trains an adapter on them; give one a `peft`, "
                "as {r: 16, target_modules: all-linear}"]  # fmt: skip
    if importlib.util.find_spec("bitsandbytes") is None:
        return ["model.quantization: needs bitsandbytes; pip install bitsandbytes, or leave it out"]
    return []


def _policy_checks(name: str, block: Policy, config: Config) -> list[str]:
    total = block.prompts * block.samples
    credit, kl, loss, sampling = block.credit, block.kl, block.loss, config.sampling
    cut = {"top_p": sampling.top_p < 1, "top_k": sampling.top_k > 0, "min_p": sampling.min_p > 0,
           "repetition_penalty": sampling.repetition_penalty != 1}  # fmt: skip
    checks = {
        f": {block.prompts} prompts x {block.samples} samples = {total} is not divisible by "
        f"minibatches {block.minibatches}": total % block.minibatches != 0,
        f".samples: {credit.kind} credit compares the samples of a prompt; give at least 2": (
            credit.kind in ("group", "leave_one_out") and block.samples < 2
        ),
        ".critic: gae credit needs a critic; add `critic: {}`, or choose another credit.kind": (
            credit.kind == "gae" and block.critic is None
        ),
        f".credit.gamma: {credit.kind} credit does not discount; leave it at 1, or choose gae or monte_carlo": (
            credit.gamma != 1 and credit.kind not in ("gae", "monte_carlo")
        ),
        f".critic: {credit.kind} credit asks no critic; give critic: null, or credit.kind gae": (
            credit.kind != "gae" and block.critic is not None
        ),
        f".kl.kind: a reward penalty is k1 (its mean is the KL); found {kl.kind!r}": (
            kl.where == "reward" and kl.kind != "k1" and kl.coef > 0
        ),
        ".kl.kind: k1 in the loss has no gradient in expectation; give k2, k3 or unbiased": (
            kl.where == "loss" and kl.kind == "k1" and kl.coef > 0
        ),
        ".kl.target: steers kl.coef by factors, and 0 stays 0; give a coef to begin with": (
            kl.target is not None and kl.coef == 0
        ),
        f".kl.reference: {kl.reference} needs a KL to be of use; give kl.coef, or leave it out": (
            kl.reference != "frozen" and kl.coef == 0
        ),
        f".kl.reference: under peft the reference is the base with the adapter off; {kl.reference} would need a copy": (
            kl.reference != "frozen" and block.peft is not None
        ),
        ".kl.where: monte_carlo credit weighs scores of continuations, which carry no KL; give loss": (
            credit.kind == "monte_carlo" and kl.where == "reward" and kl.coef > 0
        ),
        ".ptx_data: without loss.ptx_coef nothing is imitated; give one, or leave the data out": (
            block.ptx_data is not None and loss.ptx_coef == 0
        ),
        ".overlap: samples are one update old, and nothing corrects for it; give loss.importance: truncate": (
            block.overlap and loss.importance == "none"
        ),
        ".overlap: one batch a step is drawn ahead; groups.dynamic, episodes and monte_carlo ask for more": (
            block.overlap and (block.groups.dynamic or block.episodes is not None or credit.kind == "monte_carlo")
        ),
        f".groups.overlong_buffer: {block.groups.overlong_buffer} exceeds sampling.max_tokens {sampling.max_tokens}": (
            block.groups.overlong_buffer > sampling.max_tokens
        ),
        **{
            f": sampling.{key} would change what is sampled and not what is trained on; leave it at its default": on
            for key, on in cut.items()
        },
    }
    return [name + message for message, wrong in checks.items() if wrong]
