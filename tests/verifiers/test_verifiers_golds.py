r"""A gold that no answer can ever meet is an error of the checker, found before training and never graded `fail`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import verifiers

ROOT = Path(verifiers.__file__).parent.parent
NO_GOLDS = [None, float("nan"), {"value": 5}, [5], "nan", "null", "", " ", r"\boxed{}"]


def status(name: str, completion: str, task: dict[str, Any]) -> str:
    (verdict,) = verifiers.load(name).grade([completion], [task])
    return verdict.status


@pytest.mark.parametrize("gold", NO_GOLDS, ids=repr)
@pytest.mark.parametrize("name", ["math_answer", "numeric"])
def test_a_gold_that_is_no_value_is_an_error_for_every_answer(name: str, gold: Any) -> None:
    for completion in (r"So \boxed{72}.", r"\boxed{None}", r"\boxed{nan}", "no answer"):
        assert status(name, completion, {"gold": gold}) == "error"


@pytest.mark.parametrize(
    ("gold", "words"),
    [({"value": 1, "unit": "m"}, "must be a text"), ([{"value": 1}], "must be a text"), (None, "must be a text"),
     (float("nan"), "must be a text"), (5.0, "gold 5.0 can be written in several ways"), (1e30, "several ways")],
)  # fmt: skip
def test_exact_refuses_a_gold_that_is_no_text_and_has_no_single_one(gold: Any, words: str) -> None:
    (verdict,) = verifiers.load("exact").grade(["unit"], [{"gold": gold}])
    assert verdict.status == "error" and words in verdict.detail


@pytest.mark.parametrize("gold", [None, float("nan"), {"letter": "C"}, ["C"], "", "E"], ids=repr)
def test_a_choice_that_is_none_is_an_error(gold: Any) -> None:
    assert status("multiple_choice", "Answer: C", {"gold": gold, "choices": ["a", "b", "c", "d"]}) == "error"


@pytest.mark.parametrize("gold", ["1/0", r"10^{10^{10}}", r"\oint_C f", "(1,2"])
def test_a_gold_that_cannot_be_compared_is_an_error_unless_the_letters_are_the_same(gold: str) -> None:
    assert status("math_answer", r"\boxed{5}", {"gold": gold}) == "error"
    assert status("math_answer", rf"\boxed{{{gold}}}", {"gold": gold}) == "pass"


def test_gold_faults_names_the_rows_and_the_reason() -> None:
    tasks: list[dict[str, Any]] = [{"gold": "5"}, {"gold": None}, {}, {"gold": r"\text{Tuesday}"}, {"gold": "1/0"}]
    faults = verifiers.gold_faults("math_answer", tasks)
    assert [index for index, _ in faults] == [1, 2, 4]
    assert "null" in faults[0][1] and "'gold'" in faults[1][1] and "1/0" in faults[2][1]
    assert verifiers.gold_faults("regex", [{"pattern": "a+"}, {"pattern": "("}])[0][0] == 1
    assert verifiers.gold_faults("exact", [{"gold": "a"}, {"gold": []}])[0][0] == 1


def test_gold_faults_never_calls_a_model() -> None:
    assert verifiers.gold_faults("judge", [{"rubric": "Is it polite?"}]) == []


def test_golds_on_the_command_line_lists_file_line_and_reason_and_exits_2(tmp_path: Path) -> None:
    rows = [{"gold": "5", "prompt": "2+3"}, {"task": {"gold": None}}, {"gold": "[0,1)"}, {"gold": {"value": 3}}]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "-m", "verifiers", "golds", str(source)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{source}:2: ") and lines[1].startswith(f"{source}:4: ")
    assert lines[2] == "math_answer: 4 golds checked, 2 can never be met"
    source.write_text('{"gold": "C"}\n')
    done = subprocess.run([*command, "multiple_choice"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "multiple_choice: 1 golds checked, 0 can never be met\n")


@pytest.mark.parametrize("text", ["[1]\n", "{\n", '{"task": 3}\n'])
def test_a_file_of_golds_that_is_no_jsonl_is_a_mistake_of_the_input(text: str) -> None:
    command = [sys.executable, "-m", "verifiers", "golds", "-"]
    done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "-:1:" in done.stderr


def test_reading_golds_skips_blank_lines_and_counts_them() -> None:
    from verifiers.golds import read_tasks

    assert list(read_tasks(io.StringIO('\n{"gold": "5"}\n'), "x")) == [(2, {"gold": "5"})]


def test_a_column_of_another_name_is_asked_for_in_one_line_and_read_with_field(tmp_path: Path) -> None:
    from verifiers.golds import check_file

    source, out = tmp_path / "rows.jsonl", io.StringIO()
    source.write_text('{"q": "1+1", "answer": null}\n' * 60 + '{"q": "1+1", "answer": 2}\n')
    with pytest.raises(ValueError, match="no row has a field 'gold'; have: q, answer; name its column: --field gold="):
        check_file(verifiers.load("math_answer"), str(source), out)
    assert check_file(verifiers.load("math_answer"), str(source), out, columns={"gold": "answer"}) == 60
    lines = out.getvalue().splitlines()
    assert lines[50:] == ["and 10 more; --all lists them", "math_answer: 61 golds checked, 60 can never be met"]


def test_a_field_without_its_column_is_a_mistake_of_the_command() -> None:
    from verifiers.__main__ import parser, run

    with pytest.raises(ValueError, match="--field gold: write FIELD=COLUMN"):
        run(parser().parse_args(["golds", "x.jsonl", "--field", "gold"]))
