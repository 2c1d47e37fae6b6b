"""Tools for agents: the registry, the arguments of calls, the library, the conformance kit and the scaffold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from verifiers import _call_timer, kit, sandbox
from verifiers import load as load_verifier
from verifiers import tools as registry
from verifiers.tools import Tool, Toolbox, ToolBroken, ToolError
from verifiers.tools._arguments import checked_arguments, fits
from verifiers.tools._conformance import check
from verifiers.tools._new_tool import write
from verifiers.tools.search import Index

needs_sandbox = pytest.mark.skipif(sandbox.unavailable() is not None, reason="no sandbox here")
needs_shell = pytest.mark.skipif(sandbox.unavailable(shell=True) is not None, reason="no shell sandbox here")


def box(name: str, **settings: object) -> Toolbox:
    return Toolbox([(registry.load(name), settings)])


@pytest.mark.parametrize("name", ["calculator", "search", "sql"])
def test_quick_tools_of_the_library_conform(name: str) -> None:
    assert check(registry.load(name)) == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["python", "shell"])
def test_tools_that_run_code_conform(name: str) -> None:
    assert check(registry.load(name)) == []


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1/3+1/6", "0.5"),
        ("10**-2", "0.01"),
        ("17 % 5", "2"),
        ("-(2+3)*4", "-20"),
        ("1e3", "1000"),
        ("22/7", "3.14285714286"),
    ],
)
def test_the_calculator_is_exact(expression: str, value: str) -> None:
    assert box("calculator").call("calculator", {"expression": expression}) == value


def test_bm25_scores_are_those_of_the_formula() -> None:
    # by hand: N = 2, "b" is in one text: idf = ln(1 + 1.5 / 1.5) = ln 2; |d| = 2, mean 1.5; f = 1
    # ln 2 * 1 / (1 + 1.2 * (0.25 + 0.75 * 2 / 1.5)) = 0.693147 / 2.5
    assert Index(["a b", "a"]).best("b", 5) == [(0, pytest.approx(0.693147 / 2.5, rel=1e-5))]


def test_a_query_finds_one_letter_words_and_words_that_half_of_the_passages_contain() -> None:
    index = Index(["x marks it", "y marks it", "z", "w"])
    assert [number for number, _ in index.best("x", 3)] == [0]
    assert [number for number, _ in index.best("marks", 3)] == [0, 1]


@needs_sandbox
def test_an_interpreter_keeps_variables_and_files_and_is_as_before_after_a_call_that_is_killed() -> None:
    session = box("python", timeout_s=1)
    session.call("python", {"code": "x = [1]\nopen('f', 'w').write('kept')"})
    with pytest.raises(ToolError, match="as they were before this call"):
        session.call("python", {"code": "import os\nx.append(2)\nos._exit(1)"})
    assert session.call("python", {"code": "print(open('f').read(), x)"}) == "kept [1]"


@needs_sandbox
def test_sessions_do_not_see_each_other() -> None:
    one, two = box("python"), box("python")
    one.call("python", {"code": "secret = 7\nopen('f', 'w').write('x')"})
    assert two.call("python", {"code": "secret"}) == "NameError: name 'secret' is not defined (line 1)"
    assert two.call("python", {"code": "import os\nos.listdir('.')"}) == "[]"


@needs_sandbox
def test_random_numbers_of_an_interpreter_are_the_same_in_every_session() -> None:
    code = {"code": "import random\nrandom.random()"}
    assert box("python").call("python", code) == box("python").call("python", code)


@needs_shell
def test_a_shell_keeps_its_directory_and_starts_with_the_files_of_the_task() -> None:
    session = box("shell")
    session.reset({"files": {"a/b.txt": "hello\n"}})
    session.call("shell", {"command": "tr a-z A-Z < a/b.txt > c.txt"})
    assert session.call("shell", {"command": "cat c.txt"}) == "HELLO"


@needs_shell
def test_a_shell_episode_earns_what_the_checks_of_its_task_say() -> None:
    task = {"files": {"a.txt": "b\na\n"}, "checks": [{"file": "sorted.txt", "equals": "a\nb\n"}]}
    idle, done = box("shell"), box("shell")
    for session in (idle, done):
        session.reset(task)
    done.call("shell", {"command": "sort a.txt > sorted.txt"})
    assert (idle.reward(), done.reward()) == (0.0, 1.0)


def test_a_query_without_a_corpus_and_a_task_without_a_working_schema_are_no_mistakes_of_the_model() -> None:
    with pytest.raises(ValueError, match="nothing to search") as caught:
        box("search").call("search", {"query": "x"})
    assert not isinstance(caught.value, ToolError)
    broken = box("sql")
    broken.reset({"schema": "CREATE TABLE ("})
    with pytest.raises(ToolBroken):
        broken.call("sql", {"query": "SELECT 1"})


# --- arguments ------------------------------------------------------------------------------------------------------


def example(text: str, count: int = 1, kind: Literal["a", "b"] = "a", items: list[float] | None = None) -> str:
    return f"{text} {count} {kind} {items}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "needs the argument 'text'"),
        ({"text": "x", "texts": 1}, "no argument 'texts'; it takes: text, count"),
        ({"text": 1}, "'text' must be a string, found 1"),
        ({"text": "x", "count": "1"}, "'count' must be an integer, found '1'"),
        ({"text": "x", "count": True}, "'count' must be an integer, found True"),
        ({"text": "x", "kind": "c"}, "must be one of 'a', 'b'"),
        ({"text": "x", "items": ["1"]}, "must be a list or null"),
        (None, "must be an object, found None"),
        (["x"], "must be an object"),
    ],
)
def test_arguments_that_do_not_fit_are_reported_to_the_model(arguments: object, words: str) -> None:
    with pytest.raises(ToolError, match=words):
        checked_arguments("example", example, arguments)


def test_arguments_that_fit_are_passed_as_they_are() -> None:
    arguments = {"text": "x", "items": [1, 2.5], "kind": "b"}
    assert checked_arguments("example", example, arguments) == arguments


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [(1, float, True), (True, float, False), ({"a": 1}, dict[str, int], True), ({"a": "1"}, dict[str, int], False),
     (None, str | None, True), ("x", object, True)],
)  # fmt: skip
def test_json_values_fit_the_hints_that_name_their_type(value: object, hint: object, expected: bool) -> None:
    assert fits(value, hint) is expected


# --- registry, scaffold, kit ----------------------------------------------------------------------------------------


def test_an_unknown_tool_and_an_unknown_setting_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'calculator'"):
        registry.load("calculater")
    with pytest.raises(ValueError, match="no setting 'timeout'; did you mean 'timeout_s'"):
        box("python", timeout=3)
    with pytest.raises(ToolError, match="no tool 'calc'"):
        box("calculator").call("calc", {})


def test_a_scaffolded_tool_conforms_and_is_found(tmp_path: Path) -> None:
    path = write("word_count", tmp_path)
    assert "word_count" in registry.available([tmp_path])
    assert check(registry.load("word_count", [tmp_path])) == []
    with pytest.raises(ValueError, match="exists already"):
        write("word_count", tmp_path)
    with pytest.raises(ValueError, match="is taken"):
        write("calculator", tmp_path)
    assert path.read_text().startswith('"""word_count')


def test_the_tool_of_the_documentation_conforms(tmp_path: Path) -> None:
    page = (Path(registry.__file__).parents[2] / "docs" / "tools.md").read_text()
    (tmp_path / "word_count.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    assert check(registry.load("word_count", [tmp_path])) == []


def test_the_kit_of_verifiers_reads_the_last_message_of_a_generated_conversation() -> None:
    task_of_the_demo = Path(registry.__file__).parents[2] / "configs" / "tools"
    rows = kit.cases(load_verifier("products", [task_of_the_demo]))
    assert all(isinstance(row.completion, str) for row in rows)
    assert sum(row.kind == "right" for row in rows) > 50


FAULTY = '''
import time
from verifiers.tools import ToolExample
COUNT = [0]
DEADLINE_S = 0.05
def faulty(text: str, n) -> str:
    """Says something.

    Args:
        text: What.
    """
    COUNT[0] += 1
    if text == "b":
        time.sleep(0.2)
    return str(COUNT[0])
EXAMPLES = (ToolExample("right", [{"text": "a", "n": 1}], "1"), ToolExample("mistake", [{"text": "b", "n": 1}], "no"))
'''


def test_the_kit_names_every_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_call_timer, "slowdown", lambda: 1.0)  # sleeping takes no longer on a busy machine
    (tmp_path / "faulty.py").write_text(FAULTY)
    faults = "\n".join(check(registry.load("faulty", [tmp_path])))
    for words in (
        "EXAMPLES has no hostile",
        "'n' has no type hint",
        "does not describe 'n'",
        "not mistake",
        "beside other",
        "took 0.2",
    ):
        assert words in faults, words


class Counter:
    """An environment as TRL documents it."""

    def reset(self, start: int = 0, **row: object) -> str:
        self.value = start
        return f"It stands at {start}."

    def add(self, n: int) -> str:
        """Add to the counter.

        Args:
            n: How much.
        """
        self.value += n
        return f"now {self.value}"

    def get_reward(self) -> float:
        return float(self.value == 5)

    def _hidden(self) -> None: ...


def test_a_class_with_the_contract_of_trl_is_a_toolbox() -> None:
    session = Toolbox([(Tool("Counter", Counter, True), {})])
    assert list(session.functions) == ["add"]
    assert session.reset({"start": 2, "answer": "5"}) == "It stands at 2."
    assert session.call("add", {"n": 3}) == "now 5"
    assert session.reward() == 1.0


def test_a_tool_may_be_defined_on_the_first_line_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text("def first(text: str) -> str:\n    return text\n")
    assert registry.load("first", [tmp_path]).factory("a") == "a"


def test_a_class_is_loaded_from_a_file_and_from_a_module(tmp_path: Path) -> None:
    (tmp_path / "my_env.py").write_text("class Env:\n    def go(self) -> str:\n        return 'x'\n")
    assert registry.load_class(f"{tmp_path / 'my_env.py'}:Env").is_session
    assert registry.load_class("tests.verifiers.test_tools:Counter").factory.__name__ == "Counter"
    for reference, words in (("my_env.py", "file.py:Class"), ("no_such.py:Env", "does not exist"),
                             ("tests.verifiers.test_tools:Nothing", "defines no class")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            registry.load_class(reference)


def test_the_command_line_checks_and_reports_a_fault_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    command = [sys.executable, "-m", "verifiers", "tool", "check", "calculator", "faulty", "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "calculator  16 examples  ok" in done.stdout
    assert "faulty: EXAMPLES has no hostile one" in done.stdout
