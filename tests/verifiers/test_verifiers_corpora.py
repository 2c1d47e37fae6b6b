"""Final answers as models write them, each with its verdict: rows of tests/corpora/NAME.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import verifiers

CORPORA = Path(__file__).parent.parent / "corpora"
NAMES = ("math_answer", "numeric", "multiple_choice")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CORPORA / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_gets_the_verdict_it_expects(name: str) -> None:
    cases = rows(name)
    verdicts = verifiers.load(name).grade([row["completion"] for row in cases], [row["task"] for row in cases])
    wrong = []
    for row, verdict in zip(cases, verdicts, strict=True):
        expected = [row["expect"]] if isinstance(row["expect"], str) else row["expect"]
        if verdict.status not in expected:
            wrong.append((row["completion"][:80], row["task"], expected, verdict.status, verdict.detail))
    assert wrong == []


@pytest.mark.parametrize("name", NAMES)
def test_each_corpus_holds_answers_of_both_kinds(name: str) -> None:
    passing = [row for row in rows(name) if row["expect"] == "pass"]
    assert len(passing) >= 30 and len(rows(name)) - len(passing) >= 15
