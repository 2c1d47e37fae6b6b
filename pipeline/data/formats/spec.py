"""What a format is, and what its files share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Convert = Callable[[Mapping[str, Any]], Row]
MATHS = ("math", "gsm8k", "aime", "amc", "olympiad", "minerva", "numina", "deepscaler", "dapo")


class UnsupportedRow(ValueError):
    """The row is of its format, and asks for what no verifier of ours can judge: that is the text."""


@dataclass(frozen=True, slots=True)
class Format:
    """columns: what a row must have. matches: whether a row looks like one of this format; None: only by its name.
    source: where such rows are published or which tool reads them. wording: what is written around every row.
    """

    convert: Convert
    columns: tuple[str, ...]
    source: str
    licence: str = "the data set's own"
    wording: str | None = None
    matches: Callable[[Mapping[str, Any]], bool] | None = None


def is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(t, Mapping) and "role" in t for t in value)


def is_prompt(value: Any) -> bool:
    return isinstance(value, str) or is_messages(value)


def ends_with_assistant(value: Any) -> bool:
    return is_messages(value) and value[-1]["role"] == "assistant"


def one_gold(value: Any, column: str) -> Any:
    """A gold as verifiers want it: a list of one is the one. Raises ValueError where it holds several or none."""
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f"{column} is a list of {len(value)} answers, and a verifier compares with one; give one "
                             "row per answer, or one answer")  # fmt: skip
        return one_gold(value[0], column)
    if isinstance(value, Mapping):
        raise ValueError(f"{column} is a struct with {', '.join(value)}; name the field with the answer, as "
                         f"task: {{gold: {column}.{next(iter(value), 'field')}}} with format: plain")  # fmt: skip
    if value is None:
        raise ValueError(f"{column} is null, so no answer can be right; fill it in, or remove the row")
    return value


def named_verifier(source: Any) -> Row:
    """`verifier: math_answer` for sources whose name says mathematics: read by `rewards: {by_task: {}}`."""
    name = str(source or "").lower()
    return {"verifier": "math_answer", "box_needed": False} if any(word in name for word in MATHS) else {}
