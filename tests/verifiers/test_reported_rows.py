"""Completions that were once graded wrong, here or elsewhere, with the verdict that is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sandboxes import isolated

import verifiers

ROWS = Path(__file__).parents[1] / "corpora" / "reported"
NAMES = ("python_stdio", "python_tests", "instructions", "json_schema", "sql_query", "reasoning_gym")


def rows() -> list[Any]:
    found = []
    for name in NAMES:
        marks = [pytest.mark.skipif(bool(isolated()), reason=str(isolated()))] if name.startswith("python") else []
        for number, line in enumerate((ROWS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            found.append(pytest.param(name, row, id=f"{name} {number} {row['why']}"[:90], marks=marks))
    return found


@pytest.mark.parametrize(("name", "row"), rows())
def test_a_reported_completion_gets_the_right_verdict(name: str, row: dict[str, Any]) -> None:
    verifier = verifiers.load(name)
    (verdict,) = verifier.grade([row["completion"]], [row["task"]])
    assert verdict.status in ([row["expect"]] if isinstance(row["expect"], str) else row["expect"]), verdict
