"""OpenAI's grader JSON -> an object that grades rows. Source: OpenAI, "Graders" guide, and its API reference.

`item` is the row (all its fields), `sample` what was sampled: output_text is the completion after its thinking,
output_json that text parsed as JSON. Where ours differs: a grader that fails (an exception, no reply, a row without
the field it reads) masks the row instead of scoring 0; a completion that is no JSON where output_json is read is
malformed and scores 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from rewards.graders.formula import Formula
from rewards.graders.grader_part import Grade, Grader, GraderRow
from rewards.graders.hosted import HostedGrader
from rewards.graders.item_templates import MissingValue, filled, paths
from rewards.graders.model_graders import LabelModel, ModelCall, ScoreModel, messages_of, sampling_of
from rewards.graders.similarity import METRICS, NOT_HERE
from verifiers import after_thinking, judge

OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}
COMMON = ("type", "name", "pass_threshold")
FIELDS = {
    "string_check": ("input", "reference", "operation"),
    "text_similarity": ("input", "reference", "evaluation_metric"),
    "score_model": ("input", "model", "range", "sampling_params"),
    "label_model": ("input", "model", "labels", "passing_labels", "sampling_params"),
    "python": ("source", "image_tag"),
    "multi": ("graders", "calculate_output"),
}
OPTIONAL = ("name", "pass_threshold", "range", "sampling_params", "image_tag", "model")
ENDPOINT_CALLS = 8  # at a time, of one chunk
DEPTH = 5  # of multi graders inside multi graders


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Where a grader's Python and its model calls run: the YAML's fields beside the JSON."""

    isolation: str = "sandbox"
    timeout_s: float = 30.0
    url: str = ""
    model: str = ""


class RowGrader(Protocol):
    def grade_row(self, scope: Mapping[str, Any]) -> Grade: ...


@dataclass(frozen=True, slots=True)
class StringCheck:
    text: str
    reference: str
    operation: str

    def grade_row(self, scope: Mapping[str, Any]) -> Grade:
        holds = OPERATIONS[self.operation](filled(self.text, scope), filled(self.reference, scope))
        return Grade(float(holds), "" if holds else f"{self.operation} does not hold")


@dataclass(frozen=True, slots=True)
class TextSimilarity:
    text: str
    reference: str
    metric: str

    def grade_row(self, scope: Mapping[str, Any]) -> Grade:
        value = METRICS[self.metric](filled(self.text, scope), filled(self.reference, scope))
        return Grade(value, f"{self.metric} {value:.3f}")


@dataclass(frozen=True, slots=True)
class EachRow:
    """A grader of one row as a grader of many."""

    grader: RowGrader
    threads: int = 1

    def unavailable(self) -> str | None:
        call = getattr(self.grader, "call", None)
        return judge.unavailable({"url": call.url}) if isinstance(call, ModelCall) else None

    def grade(self, rows: Sequence[GraderRow]) -> list[Grade]:
        if self.threads == 1:
            return [self._one(row) for row in rows]
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self._one, rows))

    def _one(self, row: GraderRow) -> Grade:
        try:
            return self.grader.grade_row(row.task)
        except MissingValue as exc:
            if str(exc).startswith("no sample."):
                return Grade(0.0, f"{exc}: the completion is not the JSON that the grader reads", malformed=True)
            return Grade(None, f"the row has {exc}")
        except judge.JudgeFailed as exc:
            return Grade(None, f"grader model: {exc}")


@dataclass(frozen=True, slots=True)
class Multi:
    """Several graders and a formula over their grades."""

    graders: Mapping[str, Grader]
    formula: Formula

    def unavailable(self) -> str | None:
        return next((reason for each in self.graders.values() if (reason := each.unavailable())), None)

    def grade(self, rows: Sequence[GraderRow]) -> list[Grade]:
        columns = {name: grader.grade(rows) for name, grader in self.graders.items()}
        return [self._combined({name: column[i] for name, column in columns.items()}) for i in range(len(rows))]

    def _combined(self, grades: Mapping[str, Grade]) -> Grade:
        broken = next((f"{name}: {grade.detail}" for name, grade in grades.items() if grade.value is None), None)
        if broken is not None:
            return Grade(None, broken)
        values = {name: grade.value for name, grade in grades.items() if grade.value is not None}
        detail = ", ".join(f"{name} {value:g}" for name, value in values.items())
        try:
            value = self.formula(values)
        except (ArithmeticError, ValueError) as exc:
            return Grade(None, f"calculate_output: {exc} ({detail})")
        return Grade(value, detail, malformed=any(grade.malformed for grade in grades.values()))


@dataclass(frozen=True, slots=True)
class OpenAIGrader:
    """The whole grader. pass_at: the lowest passing grade that the JSON states, or the best that its type can give."""

    grader: Grader
    pass_at: float
    items: frozenset[str]  # the row's fields that its templates read

    def unavailable(self) -> str | None:
        return self.grader.unavailable()

    def grade(self, rows: Sequence[GraderRow]) -> list[Grade]:
        return self.grader.grade([replace(row, task=scope_of(row)) for row in rows])


def scope_of(row: GraderRow) -> dict[str, Any]:
    """{"item", "sample"} of a row, as templates and Python graders read them."""
    text = after_thinking(row.completion)
    text = text.lstrip() if text != row.completion else text
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    message = {"role": "assistant", "content": text}
    sample: dict[str, Any] = {"output_text": text, "output_tools": [], "choices": [{"index": 0, "message": message}]}
    return {"item": dict(row.task), "sample": sample if parsed is None else {**sample, "output_json": parsed}}


def read(spec: Any, where: str, options: HostOptions = HostOptions()) -> OpenAIGrader:
    """The grader that the JSON describes. Raises ValueError naming the key and the fix."""
    grader, best = _grader(spec, where, options, 0)
    threshold = spec.get("pass_threshold")
    return OpenAIGrader(grader, float(threshold if threshold is not None else best), frozenset(_items(spec)))


def _grader(spec: Any, where: str, options: HostOptions, depth: int) -> tuple[Grader, float]:
    """The grader and the highest grade its type can give."""
    if not isinstance(spec, Mapping):
        raise ValueError(f"{where}: expected an object with a type, found {type(spec).__name__}")
    kind = spec.get("type")
    if kind not in FIELDS:
        raise ValueError(f"{where}.type: no grader type {kind!r}; have: {', '.join(FIELDS)}")
    for key in spec:
        if key not in (*COMMON, *FIELDS[kind]):
            raise ValueError(f"{where}: unknown key {key!r} of a {kind} grader; have: {', '.join(FIELDS[kind])}")
    for key in FIELDS[kind]:
        if key not in spec and key not in OPTIONAL:
            raise ValueError(f"{where}: a {kind} grader needs {key!r}")
    if depth > DEPTH:
        raise ValueError(f"{where}: multi graders are nested more than {DEPTH} deep")
    makers = {"string_check": _string_check, "text_similarity": _text_similarity, "score_model": _score_model,
              "label_model": _label_model, "python": _python}  # fmt: skip
    if kind == "multi":
        return _multi(spec, where, options, depth), 1.0
    grader = makers[kind](spec, where, options)
    single = grader.grader if isinstance(grader, EachRow) else None
    return grader, single.high if isinstance(single, ScoreModel) else 1.0


def _template(spec: Mapping[str, Any], key: str, where: str) -> str:
    value = spec[key]
    if not isinstance(value, str):
        raise ValueError(f"{where}.{key}: expected text, found {value!r}")
    try:
        list(paths(value))
    except ValueError as exc:
        raise ValueError(f"{where}.{key}: {exc}") from None
    return value


def _string_check(spec: Mapping[str, Any], where: str, options: HostOptions) -> Grader:
    if spec["operation"] not in OPERATIONS:
        raise ValueError(f"{where}.operation: no choice {spec['operation']!r}; have: {', '.join(OPERATIONS)}")
    return EachRow(StringCheck(_template(spec, "input", where), _template(spec, "reference", where), spec["operation"]))


def _text_similarity(spec: Mapping[str, Any], where: str, options: HostOptions) -> Grader:
    metric = spec["evaluation_metric"]
    if metric not in METRICS:
        hint = NOT_HERE.get(metric) or f"have: {', '.join(METRICS)}"
        raise ValueError(f"{where}.evaluation_metric: {metric!r} cannot be computed here; {hint}")
    return EachRow(TextSimilarity(_template(spec, "input", where), _template(spec, "reference", where), metric))


def _call(spec: Mapping[str, Any], where: str, options: HostOptions) -> ModelCall:
    messages = messages_of(spec["input"], f"{where}.input")
    sampling = sampling_of(spec.get("sampling_params"), f"{where}.sampling_params")
    return ModelCall(messages, options.model or str(spec.get("model") or ""), options.url, sampling)


def _score_model(spec: Mapping[str, Any], where: str, options: HostOptions) -> Grader:
    bounds = spec.get("range") or [0.0, 1.0]
    fine = isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(b, int | float) for b in bounds)
    if not fine or not all(map(math.isfinite, bounds)) or bounds[0] >= bounds[1]:
        raise ValueError(f"{where}.range: expected two numbers in rising order, found {bounds!r}")
    return EachRow(ScoreModel(_call(spec, where, options), float(bounds[0]), float(bounds[1])), ENDPOINT_CALLS)


def _label_model(spec: Mapping[str, Any], where: str, options: HostOptions) -> Grader:
    labels, passing = (tuple(map(str, spec[key] or ())) for key in ("labels", "passing_labels"))
    unknown = [label for label in passing if label not in labels]
    if not labels or not passing or unknown:
        raise ValueError(f"{where}.passing_labels: expected some of the labels {list(labels)}, found {list(passing)}")
    return EachRow(LabelModel(_call(spec, where, options), labels, passing), ENDPOINT_CALLS)


def _python(spec: Mapping[str, Any], where: str, options: HostOptions) -> Grader:
    if not isinstance(spec["source"], str) or "def grade" not in spec["source"]:
        raise ValueError(f"{where}.source: expected Python that defines grade(sample, item)")
    try:
        return HostedGrader("openai_python", spec["source"], "grader.py", "grade", options.isolation, options.timeout_s)
    except ValueError as exc:
        raise ValueError(f"{where}.source: {exc}") from None


def _multi(spec: Mapping[str, Any], where: str, options: HostOptions, depth: int) -> Grader:
    graders = spec["graders"]
    if isinstance(graders, list):
        graders = {str(each.get("name")): each for each in graders if isinstance(each, Mapping)}
    if not isinstance(graders, Mapping) or not graders:
        raise ValueError(f"{where}.graders: expected graders by name, found {graders!r}")
    try:
        formula = Formula(str(spec["calculate_output"]))
    except ValueError as exc:
        raise ValueError(f"{where}.calculate_output: {exc}") from None
    if unknown := sorted(formula.names - graders.keys()):
        raise ValueError(f"{where}.calculate_output: no grader {unknown[0]!r}; have: {', '.join(graders)}")
    read_one = partial(_grader, options=options, depth=depth + 1)
    return Multi({name: read_one(each, f"{where}.graders.{name}")[0] for name, each in graders.items()}, formula)


def _items(spec: Any) -> set[str]:
    """Top-level fields of the row that any template of the grader reads."""
    if isinstance(spec, str):
        try:
            return {str(steps[1]) for steps in paths(spec) if steps[0] == "item" and len(steps) > 1}
        except ValueError:  # a text that is no template, such as Python source with braces
            return set()
    if isinstance(spec, Mapping):
        return set().union(*(_items(value) for key, value in spec.items() if key != "source"))
    return set().union(*map(_items, spec)) if isinstance(spec, list) else set()


__all__ = ["HostOptions", "OpenAIGrader", "read", "scope_of"]
