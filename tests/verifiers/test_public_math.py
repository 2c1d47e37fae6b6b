"""The tests of math-verify and lighteval against math_answer: what they refuse is refused, save what the docs name."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from public_packages import unpacked

import verifiers

# one set of numbers written as an inequality and as an interval is one answer here, in both directions
ONE_SET = {(r"$x \in [-2,7]$", r"$-2 \\le x \\le 7$")}


def rows(paths: Iterable[Path]) -> Iterator[tuple[str, str, bool]]:
    """(gold, completion, whether the suite accepts) of every parametrised comparison of mathematics in these files."""
    for path in paths:
        functions = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)]
        for node in [mark for function in functions if "abc" not in function.name for mark in function.decorator_list]:
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.parametrize"):
                continue
            names = [name.strip() for name in ast.literal_eval(node.args[0]).split(",")]
            if names[:2] != ["gold", "pred"] or not isinstance(node.args[1], ast.List):
                continue
            accepts = next(i for i, name in enumerate(names) if name in ("expected", "result"))
            for element in node.args[1].elts:
                try:
                    gold, completion, *_ = values = ast.literal_eval(element)
                except ValueError:
                    continue  # an f-string, or the options of an extraction
                yield gold, completion, bool(values[accepts])


def unwrapped(text: str) -> str:
    text = text.strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\[", r"\]"), (r"\(", r"\)")):
        inside = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and opening not in inside:
            return inside.strip()
    return text


def is_prose(text: str) -> bool:
    words = re.sub(r"\\(?:text|mathrm|textbf|mathbf|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+", "", text)
    return len(re.findall(r"[A-Za-z]{3,}", words)) >= 2 or re.search(r"\b(?:is|so|the|Answer)\b", words) is not None


def agreement(suite: list[tuple[str, str, bool]]) -> tuple[int, int]:
    """(rows with an answer to read, those that agree). Fails where math_answer accepts what the suite refuses."""
    in_box = [(gold, text, accepts) for gold, text, accepts in suite if "boxed" in text or not is_prose(text)]
    completions = [text if "boxed" in text else rf"\boxed{{{unwrapped(text)}}}" for _, text, _ in in_box]
    tasks = [{"gold": gold if "boxed" in gold else unwrapped(gold)} for gold, _, _ in in_box]
    statuses = [verdict.status for verdict in verifiers.load("math_answer").grade(completions, tasks)]
    wrong = {row[:2] for row, status in zip(in_box, statuses, strict=True) if status == "pass" and not row[2]}
    assert wrong <= ONE_SET, wrong
    agreeing = [row for row, status in zip(in_box, statuses, strict=True) if (status == "pass") == row[2]]
    print(f"{len(suite)} rows, {len(in_box)} with an answer to read, {len(agreeing)} agree")
    return len(in_box), len(agreeing)


@pytest.mark.long
def test_what_math_verify_refuses_is_refused_and_what_stands_in_a_box_is_mostly_accepted() -> None:
    directory = unpacked("math-verify", importlib.metadata.version("math-verify"), source=True)
    read, agreeing = agreement(list(dict.fromkeys(rows(sorted(directory.glob("*/tests/test_*.py"))))))
    assert read > 180 and agreeing >= 0.8 * read


@pytest.mark.long
@pytest.mark.skipif(
    "WHETSTONE_LIGHTEVAL" not in os.environ, reason="WHETSTONE_LIGHTEVAL names no test_extractive_match.py"
)
def test_what_lighteval_refuses_is_refused_and_what_stands_in_a_box_is_mostly_accepted() -> None:
    """The file is not in lighteval's packages; it is tests/unit/metrics/test_extractive_match.py of its repository."""
    read, agreeing = agreement(list(dict.fromkeys(rows([Path(os.environ["WHETSTONE_LIGHTEVAL"])]))))
    assert read > 120 and agreeing >= 0.8 * read
