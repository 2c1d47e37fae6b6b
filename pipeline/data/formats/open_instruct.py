"""open-instruct's RLVR rows: `messages`, `ground_truth`, and `dataset`, which says which verifier judges."""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Mapping
from typing import Any

from pipeline.data.formats import ifeval_rules
from pipeline.data.formats.spec import Format, Row, UnsupportedRow, is_messages, one_gold

EXACT = ("string_matcher", "string_f1", "puzzle", "re_search")


def convert(row: Mapping[str, Any]) -> Row:
    """The verifier is a field of the task: read by `rewards: {by_task: {}}`, or by the one verifier that is named."""
    source = row["dataset"]
    if isinstance(source, list):
        if len(source) != 1:
            raise UnsupportedRow(f"{len(source)} data sets in one row")
        source = source[0]
    source, truth = str(source).lower(), row["ground_truth"]
    messages = [dict(turn) for turn in row["messages"]]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise ValueError("its messages hold no prompt")
    return {"prompt": messages, "task": task(source, truth)}


def task(source: str, truth: Any) -> Row:
    """Fields of the verifier that judges rows of this source. Raises Unsupported where none does."""
    if "ifeval" in source or "ifbench" in source:
        return {"verifier": "instructions", "instructions": ifeval_rules.rules(first_of(truth))}
    if source.startswith("code"):
        return program(truth)
    if any(word in source for word in EXACT):
        return {"verifier": "exact", "gold": one_gold(truth, "ground_truth")}
    # its problems ask for the answer in words as often as in a box
    return {"verifier": "math_answer", "gold": str(one_gold(truth, "ground_truth")), "box_needed": False}


def first_of(truth: Any) -> Any:
    """Constraints come as an object, as JSON text, or as a list of one of these."""
    if isinstance(truth, str):
        truth = json.loads(truth)
    if isinstance(truth, list):
        if len(truth) != 1:
            raise UnsupportedRow(f"{len(truth)} constraints in one ground_truth")
        return first_of(truth[0])
    return truth


def program(truth: Any) -> Row:
    """Tests of a program: asserts in a list, or inputs and outputs."""
    tests = json.loads(truth) if isinstance(truth, str) else truth
    if isinstance(tests, list) and tests and isinstance(tests[0], str) and tests[0].lstrip().startswith("["):
        tests = json.loads(tests[0])
    if isinstance(tests, list) and tests and all(isinstance(t, Mapping) and {"input", "output"} <= t.keys()
                                                 for t in tests):  # fmt: skip
        cases = [{"stdin": str(t["input"]), "stdout": str(t["output"])} for t in tests]
        return {"verifier": "python_stdio", "prompt": "", "cases": cases}
    if isinstance(tests, list) and tests and all(isinstance(t, str) for t in tests):
        return {"verifier": "python_tests", "prompt": "", "entry_point": called(tests[0]), "tests": tests}
    raise UnsupportedRow("code with tests of another shape")


def called(test: str) -> str:
    """The function that an assert calls first."""
    names = [n.func.id for n in ast.walk(ast.parse(test)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    names = [name for name in names if not hasattr(builtins, name)]
    if not names:
        raise UnsupportedRow("code whose first test calls no function")
    return names[0]


def matches(row: Mapping[str, Any]) -> bool:
    return {"ground_truth", "dataset"} <= row.keys() and is_messages(row.get("messages"))


FORMAT = Format(
    convert,
    ("messages", "ground_truth", "dataset"),
    "allenai/RLVR-GSM-MATH-IF-Mixed-Constraints",
    "ODC-BY",
    matches=matches,
)
