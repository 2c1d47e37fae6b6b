"""Data sets of Prime Intellect's environments: `question` or `prompt`, `answer`, `info`, `task`, `example_id`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row, is_prompt, named_verifier, one_gold


def convert(row: Mapping[str, Any]) -> Row:
    """`answer` is the gold; where it is missing or empty the environment judges by `info`, which needs a task."""
    prompt = row["prompt"] if "prompt" in row else row.get("question")
    if prompt is None:
        raise ValueError("it has neither prompt nor question")
    if "completion" in row and "reward" in row:  # a saved evaluation: what a model said, not what is right
        return {"prompt": prompt, "gold": one_gold(row["answer"], "answer")}
    return {"prompt": prompt, "gold": one_gold(row["answer"], "answer"), **named_verifier(row.get("task"))}


def matches(row: Mapping[str, Any]) -> bool:
    if "answer" not in row or {"completion", "messages", "gold"} & row.keys() or isinstance(row.get("task"), Mapping):
        return False
    if "prompt" in row:
        return is_prompt(row["prompt"]) and bool({"info", "example_id"} & row.keys())
    return isinstance(row.get("question"), str)


FORMAT = Format(convert, ("answer",), "Prime Intellect environments", matches=matches)
