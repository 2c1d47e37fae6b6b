"""Countdown: numbers, and a target to reach with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row

WORDING = (
    "Using the numbers {numbers}, write an equation that equals {target}. You may use +, -, * and / and each number "
    "exactly once. Give the equation between <answer> and </answer>, for example <answer>(1 + 2) / 3</answer>."
)


def convert(row: Mapping[str, Any]) -> Row:
    """`nums` and `target`."""
    numbers = [int(n) for n in row["nums"]]
    return {
        "prompt": WORDING.format(numbers=numbers, target=row["target"]),
        "task": {"numbers": numbers, "target": int(row["target"])},
    }


def matches(row: Mapping[str, Any]) -> bool:
    return {"nums", "target"} <= row.keys() and "prompt" not in row


FORMAT = Format(
    convert, ("nums", "target"), "Jiayi-Pan/Countdown-Tasks-3to4", "not stated", wording=WORDING, matches=matches
)
