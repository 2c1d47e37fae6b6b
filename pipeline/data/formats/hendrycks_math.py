"""MATH: a problem, and a solution whose last box holds the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row

BOXED = "\\boxed"


def convert(row: Mapping[str, Any]) -> Row:
    """The gold is what the solution's last \\boxed holds."""
    gold = last_boxed(row["solution"])
    if gold is None:
        raise ValueError("its solution has no \\boxed answer")
    return {"prompt": row["problem"], "completion": row["solution"], "task": {"gold": gold}}


def last_boxed(text: str) -> str | None:
    """Contents of the last \\boxed{...} or \\fbox{...}, braces balanced; `\\boxed 7` too. None where there is none."""
    start = max(text.rfind(BOXED), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].split("boxed" if text.startswith(BOXED, start) else "fbox", 1)[1].lstrip()
    if not rest.startswith("{"):
        unbraced = re.match(r"[^\s$.]+", rest)
        return unbraced.group() if unbraced else None
    depth = 0
    for index, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:index].strip()
    return None


def matches(row: Mapping[str, Any]) -> bool:
    solution = row.get("solution")
    return "prompt" not in row and "problem" in row and isinstance(solution, str) and last_boxed(solution) is not None


FORMAT = Format(convert, ("problem", "solution"), "EleutherAI/hendrycks_math", "MIT", matches=matches)
