"""Build one object that scores batches from the `rewards:` block of a YAML file.

rewards:
  math_answer: {weight: 1.0}                               a verifier by its name
  length: {weight: 0.5, max_tokens: 512, buffer_tokens: 64}
  mine: {kind: function, path: my_rewards:brevity}          any function with TRL's signature
  openai_grader: {file: grader.json}                        graders of other tools: see rewards/graders/
  reward_model: {weight: 1.0, model: runs/demo/reward_model}
  slow: {kind: surrogate, of: python_tests, verify_share: 0.25}   a learned stand-in for a slow part
"""

from __future__ import annotations

import importlib
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import verifiers
from rewards.composite import Composite
from rewards.graders import GRADER_KINDS, GraderFields, grader_part
from rewards.parts import FunctionPart, LearnedPart, LearnedReward, Part, PotentialPart, VerifierPart
from rewards.reward_block import KINDS, SHAPING, Block, default_kind, judges_answers, module_file, nearest
from rewards.source_parts import SourcePart
from rewards.surrogate import SurrogatePart, SurrogateSettings
from verifiers._user_files import import_user_file

Learned = Callable[[str], LearnedReward]


def build(
    block: Block,
    *,
    verifier_dirs: Sequence[str | Path] = (),
    reward_dirs: Sequence[str | Path] = (),
    learned: Learned | None = None,
    tokenizer: Any = None,
) -> Composite:
    """Build the composite that a `rewards:` block describes: part name -> {weight, kind, sources, fields of that kind}.

    kind defaults from the name: a shaping kind of that name, `reward_model` (learned), else the verifier of that name.
    reward_dirs: where the files of reward functions and graders are looked for, such as the directory of the YAML.
    learned: model reference -> function of (prompt ids, completion ids); the caller provides it, so that this package
    does not import torch.
    tokenizer: for a learned part called with TRL's signature, where prompts are text.
    Raises ValueError that names the key and the nearest known key.
    """
    if not block:
        raise ValueError(f"rewards: name at least one part; verifiers: {', '.join(verifiers.available(verifier_dirs))}")
    parts: list[Part] = []
    for name, fields in block.items():
        own = dict(fields or {})
        sources = own.pop("sources", None)
        part = _part(name, own, verifier_dirs, reward_dirs, learned)
        if sources is not None and isinstance(part, SurrogatePart):
            raise ValueError(f"rewards.{name}: a surrogate learns from every row; leave it out of prompts.sources")
        parts.append(part if sources is None else SourcePart(part, frozenset(sources)))
    return Composite(parts, judges=judges_answers(block, verifier_dirs), tokenizer=tokenizer)


def _part(
    name: str,
    fields: dict[str, Any],
    dirs: Sequence[str | Path],
    reward_dirs: Sequence[str | Path],
    learned: Learned | None,
) -> Part:
    where = f"rewards.{name}"
    kind = fields.pop("kind", None) or default_kind(name, dirs)
    if kind not in KINDS:
        raise ValueError(f"{where}: unknown kind {kind!r}{nearest(str(kind), KINDS)}; have: {', '.join(KINDS)}")
    makers: dict[str, Callable[..., Part]] = {
        "verifier": _verifier_part,
        "learned": _learned_part,
        "function": _function_part,
        "potential": _potential_part,
    }
    if kind in SHAPING:
        return _shaping_part(where, name, SHAPING[kind], fields)
    if kind in GRADER_KINDS:
        return grader_part(name, kind, GraderFields(**_checked(where, GraderFields, fields, {})), reward_dirs)
    if kind == "surrogate":
        fields = _checked(where, _surrogate_fields, fields, {})
        real = _part(str(fields["of"]), dict(fields.pop("settings", {})), dirs, reward_dirs, learned)
        return _surrogate_part(where, name, real, **fields)
    given: dict[str, Any] = {"name": name}
    given |= {"dirs": dirs} if kind == "verifier" else {}
    given |= {"dirs": reward_dirs} if kind in ("function", "potential") else {}
    given |= {"learned": learned} if kind == "learned" else {}
    return makers[kind](**given, **_checked(where, makers[kind], fields, given))


def _verifier_part(
    *,
    name: str,
    dirs: Sequence[str | Path],
    weight: float = 1.0,
    verifier: str = "",
    timeout_s: float = 30.0,
    task: dict[str, Any] | None = None,
    fields: dict[str, str] | None = None,
) -> Part:
    """verifier: name of the verifier, by default the part's name; `by_task` reads it from the `verifier` field."""
    if verifier == "by_task":
        known = {each: verifiers.load(each, dirs) for each in verifiers.available(dirs)}
        read = frozenset().union(*(each.fields for each in known.values()))

        def verifier_of(row: Mapping[str, Any]) -> verifiers.Verifier | None:
            return known.get(str(row.get("verifier")))
    else:
        loaded = verifiers.load(verifier or name, dirs)
        read = loaded.fields

        def verifier_of(row: Mapping[str, Any]) -> verifiers.Verifier | None:
            return loaded

    for where, given in (("task", task or {}), ("fields", fields or {})):
        for key in sorted(given.keys() - read - {"prompt"}, key=str):  # any task may hold its prompt
            raise ValueError(f"rewards.{name}.{where}: verifier {verifier or name!r} reads no field {key!r}"
                             f"{nearest(str(key), sorted(read))}; its Task has: {', '.join(sorted(read))}")  # fmt: skip
    return VerifierPart(name, weight, verifier_of, timeout_s, task or {}, fields or {})


def _learned_part(*, name: str, learned: Learned | None, model: str = "", weight: float = 1.0) -> Part:
    if learned is None:
        raise ValueError(f"rewards.{name}: a learned reward needs a reward model, which only a training run can load")
    return LearnedPart(name, weight, learned(model or name))


def _function_part(
    *,
    name: str,
    dirs: Sequence[str | Path],
    path: str,
    weight: float = 1.0,
    timeout_s: float = 60.0,
    options: dict[str, Any] | None = None,
) -> Part:
    """path: `module:name`, a file beside the YAML or in a directory of verifier_dirs, or an installed package.

    With options, name(**options) is called once and returns the reward function.
    """
    function = _imported(f"rewards.{name}.path", path, dirs)
    return FunctionPart(name, weight, function(**options) if options else function, timeout_s)


def _potential_part(
    *,
    name: str,
    dirs: Sequence[str | Path],
    path: str,
    weight: float = 1.0,
    gamma: float = 1.0,
    timeout_s: float = 30.0,
) -> Part:
    return PotentialPart(name, weight, _imported(f"rewards.{name}.path", path, dirs), gamma, timeout_s)


def _surrogate_fields(
    *,
    of: str,
    settings: dict[str, Any] | None = None,
    weight: float = 1.0,
    verify_share: float = 0.25,
    added_variance: float | None = None,
    min_share: float = 0.05,
    correct: bool = True,
    learn: bool = True,
    learn_rows: int | None = None,
) -> None:
    """The keys of a surrogate part. of: the part it stands in for, usually a verifier; settings: that part's fields,
    as {timeout_s: 600} or {kind: function, path: "mine:build"}. Others: `SurrogateSettings`."""


def _surrogate_part(where: str, name: str, real: Part, *, of: str, weight: float = 1.0, **fields: Any) -> Part:
    settings = SurrogateSettings(**fields)
    if mistakes := settings.mistakes():
        raise ValueError(f"{where}{mistakes[0]}")
    if isinstance(real, (LearnedPart, SurrogatePart, PotentialPart)):
        raise ValueError(f"{where}.of: {of!r} is no slow check; name a verifier, a function or a grader")
    return SurrogatePart(name, weight, real, settings)


def _shaping_part(where: str, name: str, make: Callable[..., Any], fields: dict[str, Any]) -> Part:
    weight = _as_number(f"{where}.weight", fields.pop("weight", 1.0))
    return FunctionPart(name, weight, make(**_checked(where, make, fields, {}, ("weight",))), timeout_s=60.0)


def _imported(where: str, path: str, dirs: Sequence[str | Path]) -> Callable[..., Any]:
    module, colon, attribute = str(path).partition(":")
    if not colon:
        raise ValueError(f"{where}: {path!r} is not of the form module:name")
    file = module_file(module, dirs)
    try:
        if file:
            return getattr(import_user_file(f"user_rewards.{module.removesuffix('.py')}", file), attribute)
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, ValueError) as exc:
        looked = f"; no {module.replace('.', '/')}.py in {', '.join(map(str, dirs))}" if dirs and not file else ""
        raise ValueError(f"{where}: cannot import {path!r}: {exc}{looked}") from exc


def _checked(
    where: str, make: Callable[..., Any], fields: Mapping[str, Any], given: Mapping[str, Any], also: Sequence[str] = ()
) -> dict[str, Any]:
    """The fields, each converted to the type of the parameter of `make`. Raises ValueError on an unknown field."""
    parameters = {k: p for k, p in inspect.signature(make).parameters.items() if k not in given}
    known = [*also, *parameters]
    hints = typing.get_type_hints(make)
    for key in fields:
        if key not in parameters:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, known)}; have: {', '.join(known)}")
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in fields:
            raise ValueError(f"{where}: needs {key!r}; have: {', '.join(known)}")
    return {key: _typed(f"{where}.{key}", hints[key], value) for key, value in fields.items()}


def _typed(where: str, hint: Any, value: Any) -> Any:
    """Convert value to its annotated type; YAML reads 1e-6 as text, so numbers may be given as text."""
    allowed = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    if value is None and type(None) in allowed:
        return None
    plain = tuple(typing.get_origin(each) or each for each in allowed)
    if float in plain:
        return _as_number(where, value)
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        raise ValueError(f"{where}: {value!r} is not {' or '.join(t.__name__ for t in plain if t is not type(None))}")
    return value


def _as_number(where: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {value!r} is not a number") from None
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(f"{where}: {value!r} is not a finite number")
    return number


__all__ = ["build"]
