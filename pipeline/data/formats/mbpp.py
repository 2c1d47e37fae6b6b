"""MBPP: a task, a program, and asserts that it must pass."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row

WORDING = "{text}\nYour code should pass these tests:\n{tests}"


def convert(row: Mapping[str, Any]) -> Row:
    """Both published forms: `text` or (sanitized) `prompt`; imports and set-up go in front of the tests."""
    tests = list(row["test_list"])
    setup = "\n".join(row.get("test_imports") or []) or row.get("test_setup_code") or ""
    if setup:
        tests = [f"{setup}\n{test}" for test in tests]
    entry = entry_point(row["test_list"][0], row["code"])
    shown = WORDING.format(text=row.get("text") or row["prompt"], tests="\n".join(row["test_list"]))
    return {
        "prompt": shown,
        "completion": f"```python\n{row['code'].strip()}\n```",
        "task": {"prompt": shown, "entry_point": entry, "tests": tests},
    }


def entry_point(test: str, code: str) -> str:
    """The function of `code` that the first test calls. Raises ValueError where it calls none."""
    defined = {n.name for n in ast.walk(ast.parse(code)) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
            return node.func.id
    raise ValueError("its first test calls no function that its code defines")


def matches(row: Mapping[str, Any]) -> bool:
    return {"code", "test_list"} <= row.keys() and bool({"text", "prompt"} & row.keys())


FORMAT = Format(
    convert, ("code", "test_list"), "google-research-datasets/mbpp", "CC BY 4.0", wording=WORDING, matches=matches
)
