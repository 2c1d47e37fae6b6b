"""Mistakes in the files that a YAML names: one line each with the file, before anything loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import verifiers
from pipeline.config.load import load
from pipeline.plan import preflight

VERIFIER = """from typing import TypedDict
from verifiers import Example, failed, passed
class Task(TypedDict):
    gold: str
def verify(completion, task):
    return passed() if completion == task["gold"] else failed()
EXAMPLES = (Example("right", "1", {"gold": "1"}),)
"""
TOOL = '''def mine(text: str) -> str:
    """The text.

    Args:
        text: any text
    """
    return text
'''


@pytest.fixture
def mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The mistakes of a run with a verifier or a tool called `mine`, or other keys."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i}+1=", "gold": str(i + 1)} for i in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def found(*, verifier: str | None = None, tool: str | None = None, **keys: object) -> list[str]:
        raw: dict[str, object] = {
            "run": "x", "stages": ["base"], "model": {"tiny": {}}, "prompts": {"path": "rows.jsonl", "heldout": 0.3},
            "rewards": {"exact": {}}, "sampling": {"max_tokens": 16},
        }  # fmt: skip
        for text, more in ((verifier, {"rewards": {"mine": {}}, "verifier_dirs": ["own"]}),
                           (tool, {"tools": {"use": ["mine"], "dirs": ["own"]}})):  # fmt: skip
            if text is not None:
                Path("own").mkdir()
                Path("own/mine.py").write_text(text)
                raw |= more
        Path("c.yaml").write_text(yaml.safe_dump(raw | keys))
        return [line.removeprefix("c.yaml: ") for line in preflight.mistakes(load("c.yaml"))]

    return found


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (VERIFIER, None),
        (VERIFIER.replace("task):", "task)"), "rewards: own/mine.py:5: SyntaxError: expected ':'"),
        ("import nosuch\n" + VERIFIER, "rewards: own/mine.py:1: ModuleNotFoundError: No module named 'nosuch'"),
        (VERIFIER + "EXAMPLES[3]\n", "rewards: own/mine.py:8: IndexError: tuple index out of range"),
        (VERIFIER + "import sys\nsys.exit(3)\n", "rewards: own/mine.py:9: SystemExit: 3"),
        (VERIFIER.replace("EXAMPLES", "EXAMPLE"), "own/mine.py: a verifier defines EXAMPLES"),
        (VERIFIER.replace("gold: str", "pass").replace("Task", "Row"), "own/mine.py: a verifier defines Task"),
        (
            VERIFIER.replace("def verify", "async def verify"),
            "own/mine.py: no verifier, because it defines no function",
        ),
        (VERIFIER.replace("return passed", "raise SystemExit(3)\n    return passed"), "mine raised SystemExit: 3"),
    ],
)
def test_a_mistake_in_the_file_of_a_verifier_is_one_line(text, line, mistakes):
    found = mistakes(verifier=text)
    assert len(found) == (line is not None), found
    assert line is None or line in found[0]


def test_a_verifier_that_never_returns_is_named_with_the_row_and_the_seconds(mistakes, monkeypatch):
    monkeypatch.setattr(verifiers, "HANGS_S", 0.05)
    hangs = VERIFIER.replace("return passed", "import time; time.sleep(9)\n    return passed")
    assert mistakes(verifier=hangs) == [
        "prompts: row 1 of rows.jsonl: verifier 'mine' gave no verdict within 0.05 s; it hangs"
    ]


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ({"task": {"ignore_case": True, "prompt": "x"}}, None),
        (
            {"task": {"ignore_cas": True}},
            "task: verifier 'exact' reads no field 'ignore_cas'; did you mean 'ignore_case'?",
        ),
        ({"fields": {"golds": "gold"}}, "fields: verifier 'exact' reads no field 'golds'; did you mean 'gold'?"),
        ({"fields": ["gold"]}, "fields: ['gold'] is not dict"),
        ({"timeout_s": "soon"}, "timeout_s: 'soon' is not a number"),
    ],
)
def test_a_constant_or_a_column_of_a_field_that_the_verifier_does_not_read_is_one_line(part, line, mistakes):
    found = mistakes(rewards={"exact": part})
    assert [each.startswith(f"rewards.exact.{line}") for each in found] == [True] * (line is not None), found


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def f(completions, gold, unit='m', **columns): return [float(c in gold) for c in completions]", None),
        ("async def f(prompts, finished): return [None] * len(prompts)", None),
        ("def f(completions): return 1.0", "returned 1.0; return a list with one number (or None) per completion"),
        ("def f(completions): return None", "returned None; return a list"),
        ("def f(completions): return '1'", "returned '1', 1 rewards for 1 rows; return a list"),
        ("def f(completions): return ['good']", "returned ['good']; return a list"),
        ("def f(completions): return []", "returned [], 0 rewards for 1 rows; return a list"),
        ("def f(completion): return [1.0]", "needs a column 'completion'; a function is called with prompts, compl"),
        ("def f(completions, truth, **columns): return [1.0]", "needs a column 'truth'; a function is called with"),
    ],
)
def test_a_reward_function_that_can_score_no_row_is_one_line(text, line, mistakes):
    Path("mine.py").write_text(text)
    found = mistakes(rewards={"part": {"kind": "function", "path": "mine:f"}})
    assert [each.startswith(f"rewards.part: {line}") for each in found] == [True] * (line is not None), found


def test_a_reward_function_that_raises_for_a_made_up_completion_is_reported_and_the_run_goes_on(mistakes, capsys):
    Path("mine.py").write_text("def f(completions): raise KeyError('answer')")
    assert mistakes(rewards={"part": {"kind": "function", "path": "mine:f"}}) == []
    assert "rewards.part: KeyError: 'answer', for a made-up completion" in capsys.readouterr().err


@pytest.mark.parametrize(("directory", "words"), [("none", "does not exist"), ("rows.jsonl", "is a file")])
def test_a_directory_of_verifiers_must_exist(directory, words, mistakes):
    assert mistakes(verifier_dirs=[directory])[0].startswith(f"verifier_dirs: verifier directory {directory} {words}")
    assert len(mistakes(verifier_dirs=[directory])) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (TOOL.replace("str:", "str"), "tools: own/mine.py:1: SyntaxError: expected ':'"),
        ("import nosuch\n" + TOOL, "tools: own/mine.py:1: ModuleNotFoundError: No module named 'nosuch'"),
        (TOOL.replace("mine", "other"), "own/mine.py: no tool, because it defines no function 'mine' and no class"),
    ],
)
def test_a_mistake_in_the_file_of_a_tool_is_one_line(text, line, mistakes):
    (found,) = mistakes(tool=text)
    assert line in found
