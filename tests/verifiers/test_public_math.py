"""math-verify's own tests against math_answer: nothing that they refuse is accepted, save what the docs name."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Iterator

import pytest
from public_packages import unpacked

import verifiers

# one set of numbers written as an inequality and as an interval is one answer here, in both directions
ONE_SET = {(r"$x \in [-2,7]$", r"$-2 \\le x \\le 7$")}


def rows() -> Iterator[tuple[str, str, bool]]:
    """(gold, completion, whether math-verify accepts) of every parametrised comparison."""
    directory = unpacked("math-verify", importlib.metadata.version("math-verify"), source=True)
    for path in sorted(directory.glob("*/tests/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
                    continue  # an f-string
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


@pytest.mark.long
def test_what_math_verify_refuses_is_refused_and_what_stands_in_a_box_is_mostly_accepted() -> None:
    suite = list(dict.fromkeys(rows()))
    in_box = [(gold, text, accepts) for gold, text, accepts in suite if "boxed" in text or not is_prose(text)]
    completions = [text if "boxed" in text else rf"\boxed{{{unwrapped(text)}}}" for _, text, _ in in_box]
    tasks = [{"gold": gold if "boxed" in gold else unwrapped(gold)} for gold, _, _ in in_box]
    statuses = [verdict.status for verdict in verifiers.load("math_answer").grade(completions, tasks)]
    wrong = {row[:2] for row, status in zip(in_box, statuses, strict=True) if status == "pass" and not row[2]}
    assert wrong <= ONE_SET, wrong
    agreeing = [row for row, status in zip(in_box, statuses, strict=True) if (status == "pass") == row[2]]
    print(f"{len(suite)} rows, {len(in_box)} with an answer to read, {len(agreeing)} agree")
    assert len(in_box) > 180 and len(agreeing) >= 0.8 * len(in_box)
