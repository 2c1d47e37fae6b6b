"""Columns of a row: dotted names, text or messages, and what is wrong with a value, in one line with its row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.library_fields import nearest

Row = dict[str, Any]
Message = dict[str, Any]
MISSING = object()
MESSAGE_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")


class DataRow(dict[str, Any]):
    """A row that knows where it came from, so that an error found later still names the file and its row."""

    def __init__(self, fields: Mapping[str, Any], origin: str) -> None:
        super().__init__(fields)
        self.origin = origin

    def __reduce__(self) -> Any:
        return DataRow, (dict(self), self.origin)


def origin(row: Mapping[str, Any], number: int = 0, source: str | None = None) -> str:
    """`row 31 of x.jsonl`; number and source stand in for a row that was built in memory."""
    known = getattr(row, "origin", None)
    if known:
        return str(known)
    return f"row {number} of {source or 'the data'}" if number else "a row"


def column(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column; `reward_model.ground_truth` looks into structs. MISSING where there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def nearest_column(name: str, row: Mapping[str, Any]) -> str:
    """A hint: `; did you mean 'x'?`. For a dotted name, among the fields of the struct that it got to."""
    inside: Any = row
    *outer, last = name.split(".")
    for part in outer:
        if not isinstance(inside, Mapping) or part not in inside:
            return nearest(part, inside) if isinstance(inside, Mapping) else ""
        inside = inside[part]
    return nearest(last, inside) if isinstance(inside, Mapping) else ""


def text_or_messages(value: Any, name: str, *, text: bool = True) -> str | list[Message]:
    """The value as text, or as a list of messages; JSON text of messages is parsed.

    text: whether plain text is allowed. Raises ValueError saying what the column holds and how to fix it.
    """
    if isinstance(value, str):
        parsed = parsed_messages(value)
        if parsed is not None:
            return parsed
        if text and value:
            return value
        if not value:
            raise ValueError(f"column {name!r} is empty; fill it in, or remove the row")
        raise ValueError(f"column {name!r} holds text; it must be a list of messages with role and content")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"column {name!r} is null; fill it in, or remove the row")
    if isinstance(value, Mapping):
        raise ValueError(f"column {name!r} is a struct with {', '.join(map(str, value))}; name the field in it that "
                         f"holds the text, as {name}.{next(iter(value), 'field')}")  # fmt: skip
    if not isinstance(value, Sequence):
        raise ValueError(f"column {name!r} holds {value!r}, not text; write it as text in quotes, or as messages")
    if not value:
        raise ValueError(f"column {name!r} is an empty list; fill it in, or remove the row")
    for turn in value:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
            raise ValueError(f"column {name!r} is a list that holds {_shown(turn)}; each of its items must be a "
                             "message with role and content")  # fmt: skip
    return [dict(turn) for turn in value]


def parsed_messages(text: str) -> list[Message] | None:
    """Messages that a file holds as JSON text; None for any other text."""
    if not text.lstrip().startswith("[") or '"role"' not in text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    fine = isinstance(value, list) and value and all(isinstance(t, dict) and "role" in t for t in value)
    return value if fine else None


def tools_of(row: Mapping[str, Any]) -> list[Row] | None:
    """The row's tool schemas as chat templates read them; None where it has none.

    Read: a list of schemas (`{"type": "function", "function": {...}}` or the function alone), or JSON text of one,
    under `tools` or OpenAI's older `functions`. Raises ValueError where the column holds anything else.
    """
    name = "tools" if row.get("tools") else "functions"
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as exc:
            raise ValueError(f"column {name!r} holds text that is not JSON ({exc}); give a list of schemas") from exc
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(t, Mapping) for t in value):
        raise ValueError(f"column {name!r} holds {_shown(value)}; it must be a list of tool schemas")
    return [dict(t) if "function" in t or "name" not in t else {"type": "function", "function": dict(t)} for t in value]


def unusable(value: Any) -> str | None:
    """Why no verifier can compare an answer with this value; None where it may."""
    if value is None:
        return "is null"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}"
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
