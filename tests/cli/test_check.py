"""whetstone check: graders of other tools against the conformance kit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sandboxes import needs_sandbox

from pipeline.__main__ import main
from pipeline.cli.check import kind_of

STRICT = {"type": "string_check", "name": "same", "input": "{{ sample.output_text }}",
          "reference": "{{ item.reference_answer }}", "operation": "eq"}  # fmt: skip


def written(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_a_grader_that_compares_the_whole_text_conforms(tmp_path, capsys) -> None:
    assert main(["check", "--grader", written(tmp_path / "same.json", STRICT)]) == 0
    out = capsys.readouterr().out
    assert "same" in out and "ok" in out


def test_a_grader_that_finds_the_answer_anywhere_is_reported(tmp_path, capsys) -> None:
    assert main(["check", f"--grader={written(tmp_path / 'g.json', {**STRICT, 'operation': 'like'})}"]) == 2
    out = capsys.readouterr().out
    assert "accepts hostile" in out and "joined with a wrong one in either order" in out


@needs_sandbox
@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
         "    return float(solution_str == ground_truth)\n", 0, "ok"),
        ("def bad(completions, gold, **_):\n    return [0.5 for c in completions]\n", 2, "examples=rows.jsonl"),
        ("def one(completions): ...\ndef two(completions): ...\n", 2, "several reward functions"),
        ("X = 1\n", 2, "no grader that is recognised"),
    ],
    ids=["verl", "never-right", "two", "none"],
)  # fmt: skip
def test_a_python_grader_is_recognised_by_its_functions(source, code, said, tmp_path, capsys) -> None:
    assert main(["check", "--grader", written(tmp_path / "grader.py", source)]) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err and "Traceback" not in printed.err


def test_the_kind_follows_from_what_the_file_defines(tmp_path) -> None:
    file = tmp_path / "g.py"
    for source, found in (("def compute_score(**k): ...", ("verl_score", "compute_score")),
                          ("class V(base.VerifierFunction): ...", ("open_instruct", None)),
                          ("def h(x): ...\nasync def f(completions, **k): ...", ("trl_reward", "f"))):  # fmt: skip
        file.write_text(source)
        assert kind_of(file) == found


def test_own_examples_replace_the_guessed_ones(tmp_path, capsys) -> None:
    spec = {**STRICT, "input": "{{ sample.output_json.n }}", "reference": "{{ item.n }}"}
    file = written(tmp_path / "g.json", spec)
    assert main(["check", "--grader", file]) == 2 and "examples=" in capsys.readouterr().err
    texts = {"right": '{"n": 7}', "wrong": '{"n": 8}', "malformed": "7", "hostile": '{"n": [7, 8]}'}
    rows = [{"kind": kind, "completion": text, "task": {"n": 7}} for kind, text in texts.items()]
    examples = written(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))
    assert main(["check", "--grader", file, f"examples={examples}"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--grader"], "needs a file"),
        (["--grader", "nowhere.json"], "nowhere.json does not exist"),
        (["--grader", "x.json", "functoin=f"], "unknown key 'functoin'; did you mean 'function'"),
        (["nonsense_verifier"], "no verifier 'nonsense_verifier'"),
    ],
)
def test_a_mistake_is_one_line(words, said, capsys) -> None:
    assert main(["check", *words]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1


def test_a_verifier_is_checked_by_name(capsys) -> None:
    assert main(["check", "exact"]) == 0 and "exact" in capsys.readouterr().out
