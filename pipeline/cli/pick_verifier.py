"""Which verifier fits rows of data, and why: by the fields that they have and by what their golds look like."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import verifiers

GOLDS = ("gold", "answer", "ground_truth", "reference_answer", "correct_answer", "final_answer", "solution", "target",
         "label", "reward_model.ground_truth")  # fmt: skip
NUMBER = re.compile(r"[-+]?[$€£]?\s?\d[\d,]*(?:\.\d+)?(?:/\d+)?\s?%?")
MATHS = re.compile(r"[\\^=]|sqrt|\d\s*[-+*/]\s*\d")
SHORT = 60  # characters of a gold that an answer can be expected to repeat
GOOD = 0.9  # share of rows that must agree
NOT_BY_FIELDS = ("judge", "format")  # they fit any row


@dataclass(frozen=True, slots=True)
class Choice:
    """verifier: its name, "" where none fits. part: its fields under rewards. task: prompts.task, if columns must be
    renamed. why: one sentence for the comment."""

    verifier: str
    why: str
    part: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, str] | None = None


def pick(tasks: Sequence[Mapping[str, Any]]) -> Choice:
    """The verifier for rows with these fields. A nested field is named with a dot."""
    named = Counter(str(task["verifier"]) for task in tasks if task.get("verifier"))
    if named.total() >= GOOD * len(tasks) and set(named) <= set(verifiers.available()):
        counted = ", ".join(f"{name} ({count})" for name, count in named.most_common(5))
        return Choice("by_task", f"each row names its verifier: {counted}", {"kind": "verifier", "verifier": "by_task"})
    return by_fields(tasks) or by_gold(tasks) or Choice("", "no row has a field that an answer could be compared with")


def by_fields(tasks: Sequence[Mapping[str, Any]]) -> Choice | None:
    """The verifier with the most required fields, beyond a gold, that all rows have."""
    shared = set(tasks[0]).intersection(*tasks) if tasks else set()
    found = []
    for name in verifiers.available():
        required = verifiers.load(name).required_fields
        if name not in NOT_BY_FIELDS and required and required != {"gold"} and required <= shared:
            faults = len(verifiers.gold_faults(name, tasks))
            if faults <= (1 - GOOD) * len(tasks):
                found.append((-len(required), name, required))
    if not found:
        return None
    _, name, required = min(found)
    return Choice(name, f"the rows have the fields that it reads: {', '.join(sorted(required))}")


def by_gold(tasks: Sequence[Mapping[str, Any]]) -> Choice | None:
    for column in GOLDS:
        if tasks and all(is_gold(looked_up(task, column)) for task in tasks):
            return golds_in(tasks, column)
    return None


def golds_in(tasks: Sequence[Mapping[str, Any]], column: str) -> Choice | None:
    """The verifier for the golds in this column; None where a row has none there, or no verifier fits."""
    golds = [looked_up(task, column) for task in tasks]
    return of_golds([str(gold).strip() for gold in golds], tasks, column) if all(map(is_gold, golds)) else None


def is_gold(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def of_golds(golds: Sequence[str], tasks: Sequence[Mapping[str, Any]], column: str) -> Choice | None:
    renamed = None if column == "gold" else {"gold": column}
    where = f"every row has an answer in {column!r}"
    if share(golds, lambda gold: len(gold) == 1 and gold.upper() in "ABCDEFGHIJ") and len(set(golds)) > 1:
        with_choices = renamed and (
            {**renamed, "choices": "choices"} if all("choices" in t for t in tasks) else renamed
        )
        return Choice("multiple_choice", f"{where}, one letter each", {}, with_choices)
    math = [{"gold": gold, "box_needed": False} for gold in golds]
    readable = len(verifiers.gold_faults("math_answer", math)) <= (1 - GOOD) * len(golds)
    if readable and share(golds, lambda gold: bool(NUMBER.fullmatch(gold) or MATHS.search(gold))):
        kind = "a number" if share(golds, lambda gold: bool(NUMBER.fullmatch(gold))) else "mathematics"
        why = f"{where}, {kind}; it compares values, not spellings. box_needed: false also reads answers outside a box"
        return Choice("math_answer", why, {"task": {"box_needed": False}}, renamed)
    if median(map(len, golds)) <= SHORT:
        why = f"{where}, a short text. It must be the final answer, up to white space and case"
        return Choice("exact", why, {"task": {"ignore_case": True, "final": True}}, renamed)
    return None


def share(values: Sequence[str], holds: Any) -> bool:
    return sum(map(bool, map(holds, values))) >= GOOD * len(values)


def looked_up(task: Mapping[str, Any], dotted: str) -> Any:
    value: Any = task
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


__all__ = ["Choice", "golds_in", "pick"]
