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

import difflib
import importlib
import importlib.util
import inspect
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import verifiers
from rewards import shaping
from rewards.batch import MALFORMED, MONITOR, Batch, Outcome, Score
from rewards.graders import GRADER_KINDS, GraderFields, columns_needed, grader_part
from rewards.learned import prompt_ids_of
from rewards.parts import FunctionPart, Grading, LearnedPart, LearnedReward, Part, PotentialPart, VerifierPart
from rewards.source_parts import SourcePart, parts_for
from rewards.surrogate import SurrogatePart, SurrogateSettings
from verifiers._user_files import import_user_file
from verifiers.deadline import DeadlinePool

SHAPING: dict[str, Callable[..., shaping.RewardFunction]] = {
    "length": shaping.length,
    "repetition": shaping.repetition,
    "missing_eos": shaping.missing_eos,
    "format": shaping.format,
    "random": shaping.random,
    "tool_calls": shaping.tool_calls,
    "environment": shaping.environment,
}
KINDS = ("verifier", "learned", "function", "potential", "surrogate", *GRADER_KINDS, *SHAPING)
LEARNED_NAMES = ("reward_model", "learned")  # parts with these names are reward models by default
Learned = Callable[[str], LearnedReward]


class Pending:
    """A batch that is being scored."""

    def __init__(self, finishers: Sequence[Callable[[], list[Outcome]]], parts: Sequence[Part], n: int) -> None:
        self._finishers, self._parts, self._n = finishers, parts, n

    def result(self) -> list[Score]:
        """Return one Score per row, in order. Waits at most until the deadline of each row."""
        columns = [finish() for finish in self._finishers]
        return [_score(self._parts, [column[i] for column in columns]) for i in range(self._n)]


class Stream:
    """A batch of n rows whose scoring starts while it is still being sampled.

    Only slow verifiers are called early; functions and models still receive the whole batch at once.
    """

    def __init__(self, parts: Sequence[Part], pool: DeadlinePool) -> None:
        self._parts, self._pool = parts, pool
        self._gradings = {p.name: Grading(p, pool) for p in parts if isinstance(p, VerifierPart) and p.weight}

    def add(self, i: int, completion: str, task: Mapping[str, Any]) -> None:
        """Add row i, which has been sampled."""
        for grading in self._early(task):
            grading.add(i, completion, task)

    def pays_early(self, task: Mapping[str, Any]) -> bool:
        """Whether any verifier for such a row is worth calling before the batch is complete."""
        return bool(self._early(task))

    def _early(self, task: Mapping[str, Any]) -> list[Grading]:
        return [grading for grading in self._gradings.values() if grading.part.pays_early(task)]

    def finish(self, batch: Batch) -> Pending:
        """Submit the complete batch; the rows that were added must match it."""
        finishers = []
        for part in self._parts:
            grading = self._gradings.get(part.name)
            if grading is None:
                finishers.append(part.start(batch, self._pool))
                continue
            for i, (completion, task) in enumerate(zip(batch.completions, batch.tasks, strict=True)):
                grading.add(i, completion, task)
            finishers.append(grading.submitted())
        return Pending(finishers, self._parts, len(batch))


class SecondLook:
    """Scores from other parts for a subset of rows, evenly spaced over the batch. They have no weight; a row that is
    not selected, or that could not be scored, has no value."""

    name = MONITOR
    weight = 0.0

    def __init__(self, parts: Sequence[Part], samples: int) -> None:
        self._parts, self._samples = parts, samples

    def start(self, batch: Batch, pool: DeadlinePool) -> Callable[[], list[Outcome]]:
        count = min(self._samples, len(batch))
        indices = [i * len(batch) // count for i in range(count)]
        sample = batch.rows(indices)
        pending = Pending([part.start(sample, pool) for part in self._parts], self._parts, count)
        return lambda: self._finish(pending, indices, len(batch))

    def _finish(self, pending: Pending, indices: Sequence[int], n: int) -> list[Outcome]:
        out = [Outcome(None)] * n
        for index, score in zip(indices, pending.result(), strict=True):
            value = None if math.isnan(score.reward) else score.reward
            out[index] = Outcome(value, also={MALFORMED: float(score.status == "malformed")})
        return out


class Composite:
    """A weighted sum of parts. Call it like a TRL reward function, or give it a Batch."""

    __name__ = "rewards"

    def __init__(self, parts: Sequence[Part], *, max_threads: int = 16, tokenizer: Any = None) -> None:
        self.parts = tuple(parts)
        self._tokenizer = tokenizer
        self._pool = DeadlinePool(max_threads)

    def submit(self, batch: Batch) -> Pending:
        """Start scoring in the background, so that the next batch can be generated at the same time."""
        return Pending([part.start(batch, self._pool) for part in self.parts], self.parts, len(batch))

    def stream(self) -> Stream:
        """Score rows that arrive one by one; use `submit` for a complete batch."""
        return Stream(self.parts, self._pool)

    def score(self, batch: Batch) -> list[Score]:
        return self.submit(batch).result()

    def close(self) -> None:
        self._pool.close()

    def watched_by(self, strict: Composite, samples: int) -> Composite:
        """The same rewards, plus the scores of `strict` for up to `samples` rows of each batch."""
        return Composite([*self.parts, SecondLook(strict.parts, samples)])

    @property
    def judges(self) -> bool:
        """Whether a part says right or wrong. Without one every scored row has status `pass`, and a figure of accuracy
        means nothing."""
        return any(getattr(part, "judges", False) or part.name == "environment" for part in self.parts)

    @property
    def verifier_weights(self) -> dict[str, float]:
        """Map the name of each verifier part to its weight."""
        parts = [part.inner if isinstance(part, SourcePart) else part for part in self.parts]
        return {part.name: part.weight for part in parts if isinstance(part, VerifierPart)}

    @property
    def surrogates(self) -> list[SurrogatePart]:
        """The parts that learn from what they check."""
        return [part for part in self.parts if isinstance(part, SurrogatePart)]

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        """Score with TRL's signature; a column with one value per row is a task field. None = not scorable.

        Raises ValueError if a learned part needs prompt ids that the caller does not provide.
        """
        n = len(completions)
        per_row = {k: v for k, v in columns.items() if isinstance(v, list | tuple) and len(v) == n}
        finished = per_row.pop("finished", None)
        prompt_ids = per_row.pop("prompt_ids", None) or self._prompt_ids(prompts)
        tasks = [{key: values[i] for key, values in per_row.items()} for i in range(n)]
        texts = [
            verifiers.with_opened_thinking(shaping.text_of(c), p) for p, c in zip(prompts, completions, strict=True)
        ]
        batch = Batch([shaping.text_of(p) for p in prompts], prompt_ids, texts, completion_ids, finished, tasks)
        return [None if math.isnan(score.reward) else score.reward for score in self.score(batch)]

    def _prompt_ids(self, prompts: Any) -> list[list[int]]:
        """Prompt ids; only a reward model reads them."""
        readers = [part.name for part in self.parts if isinstance(part, LearnedPart)]
        if not readers:
            return [[] for _ in prompts]
        if self._tokenizer is None:
            raise ValueError(f"rewards.{readers[0]}: a reward model reads token ids; give rewards.build(tokenizer=...)")
        return prompt_ids_of(prompts, self._tokenizer)


def build(
    block: Mapping[str, Mapping[str, Any] | None],
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
    return Composite(parts, tokenizer=tokenizer)


def verifiers_of(
    block: Mapping[str, Mapping[str, Any] | None], dirs: Sequence[str | Path]
) -> Iterator[tuple[str, verifiers.Verifier, Mapping[str, Any]]]:
    """Yield (part name, verifier, fields of the part) for each verifier part of a `rewards:` block."""
    known = verifiers.available(dirs)
    for name, fields in real_parts(block).items():
        verifier = str(fields.get("verifier") or name)
        if verifier in known and fields.get("kind", "verifier") == "verifier":
            yield name, verifiers.load(verifier, dirs), fields


def real_parts(block: Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """The fields of each part of a `rewards:` block; of a surrogate part those of the part that it stands in for."""
    out = parts_for(block, None)
    for name, fields in out.items():
        if fields.get("kind") == "surrogate":
            settings, of = fields.get("settings"), str(fields.get("of", ""))
            settings = dict(settings) if isinstance(settings, Mapping) else {}
            weight = {"weight": fields["weight"]} if "weight" in fields else {}
            named = {} if "kind" in settings else {"kind": "verifier", "verifier": settings.get("verifier") or of}
            out[name] = settings | named | weight
    return out


def judges_answers(block: Mapping[str, Mapping[str, Any] | None], dirs: Sequence[str | Path]) -> bool:
    """`Composite.judges` of a `rewards:` block, without building it."""
    kinds = [fields.get("kind") or _default_kind(name, dirs) for name, fields in real_parts(block).items()]
    return any(kind in ("verifier", "environment", *GRADER_KINDS) for kind in kinds)


def learned_models(block: Mapping[str, Mapping[str, Any] | None]) -> dict[str, str]:
    """Map each reward-model part of a `rewards:` block to the model it names.

    A part is a reward model if its kind is `learned`, or if it has no kind and is named `reward_model` or `learned`.
    This rule is defined only here.
    """
    return {
        name: str((fields or {}).get("model") or name)
        for name, fields in block.items()
        if ((fields or {}).get("kind") or ("learned" if name in LEARNED_NAMES else None)) == "learned"
    }


def fields_needed(
    block: Mapping[str, Mapping[str, Any] | None], dirs: Sequence[str | Path], reward_dirs: Sequence[str | Path] = ()
) -> dict[str, frozenset[str]]:
    """Map the name of a verifier, or of a grader part -> fields its tasks must have, without those that the part's
    `task` or `fields` provides."""
    needed = {
        verifier.name: verifier.required_fields - {*(fields.get("task") or {}), *(fields.get("fields") or {})}
        for _, verifier, fields in verifiers_of(block, dirs)
    }
    columns = {name: columns_needed(name, fields, reward_dirs) for name, fields in real_parts(block).items()}
    return needed | {name: names for name, names in columns.items() if names}


def _part(
    name: str,
    fields: dict[str, Any],
    dirs: Sequence[str | Path],
    reward_dirs: Sequence[str | Path],
    learned: Learned | None,
) -> Part:
    where = f"rewards.{name}"
    kind = fields.pop("kind", None) or _default_kind(name, dirs)
    if kind not in KINDS:
        raise ValueError(f"{where}: unknown kind {kind!r}{_nearest(str(kind), KINDS)}; have: {', '.join(KINDS)}")
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


def _default_kind(name: str, dirs: Sequence[str | Path]) -> str:
    if name in KINDS:
        return name
    if name in LEARNED_NAMES:
        return "learned"
    if name in verifiers.available(dirs):
        return "verifier"
    known = [*SHAPING, "reward_model", *verifiers.available(dirs)]
    raise ValueError(
        f"rewards.{name}: not a known reward{_nearest(name, known)}; a verifier of your own is found through the "
        f"top-level key verifier_dirs: [its folder]; otherwise give a kind or use one of: {', '.join(known)}"
    )


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

        def verifier_of(row: Mapping[str, Any]) -> verifiers.Verifier | None:
            return known.get(str(row.get("verifier")))
    else:
        loaded = verifiers.load(verifier or name, dirs)

        def verifier_of(row: Mapping[str, Any]) -> verifiers.Verifier | None:
            return loaded

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
    except (ImportError, AttributeError, SyntaxError) as exc:
        looked = f"; no {module.replace('.', '/')}.py in {', '.join(map(str, dirs))}" if dirs and not file else ""
        raise ValueError(f"{where}: cannot import {path!r}: {exc}{looked}") from exc


def module_file(module: str, dirs: Sequence[str | Path]) -> Path | None:
    """The file of a module in one of the directories; None: it can only be an installed one."""
    inside = Path(*module.removesuffix(".py").split(".")).with_suffix(".py")
    return next((path for directory in dirs if (path := Path(directory) / inside).is_file()), None)


def _checked(
    where: str, make: Callable[..., Any], fields: Mapping[str, Any], given: Mapping[str, Any], also: Sequence[str] = ()
) -> dict[str, Any]:
    """The fields, each converted to the type of the parameter of `make`. Raises ValueError on an unknown field."""
    parameters = {k: p for k, p in inspect.signature(make).parameters.items() if k not in given}
    known = [*also, *parameters]
    hints = typing.get_type_hints(make)
    for key in fields:
        if key not in parameters:
            raise ValueError(f"{where}: unknown key {key!r}{_nearest(key, known)}; have: {', '.join(known)}")
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


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _score(parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Score:
    """Weighted sum of the outcomes of one row. A part of weight 0 is only recorded and cannot make the sum NaN; it
    sets the status only if no weighted part does. The status is `error`, with a valid reward, if such a part is the
    only verifier and it failed."""
    values = {part.name: out.value for part, out in zip(parts, outcomes, strict=True)}
    values |= {name: value for out in outcomes for name, value in out.also.items()}
    parts = [part for part, out in zip(parts, outcomes, strict=True) if out.applies]
    outcomes = [out for out in outcomes if out.applies]
    if not parts:
        return Score(math.nan, "error", values, "no part of the rewards judges rows of this source")
    weighted = [(part, out) for part, out in zip(parts, outcomes, strict=True) if part.weight != 0.0]
    broken = [(part, out) for part, out in weighted if out.value is None]
    judges = [out for _, out in weighted] + [out for out in outcomes if out.value is not None] + list(outcomes)
    first = next((out for out in judges if out.status is not None), None)
    if broken:
        part, out = broken[0]
        return Score(math.nan, "error", values, out.detail or f"{part.name} could not score this row")
    reward = math.fsum(part.weight * out.value for part, out in weighted if out.value is not None)
    steps = tuple(sorted(step for _, out in weighted for step in out.steps))
    status = first.status if first is not None and first.status is not None else "pass"
    return Score(reward, status, values, first.detail if first is not None else "", steps)
