"""The command line grades in order, holds a window and not the file, and reports one line if the input is wrong;
the kit catches each kind of bad verifier."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import verifiers
from verifiers import _call_timer, kit
from verifiers.grade import read_rows, verdicts

ROOT = Path(verifiers.__file__).parent.parent
HEAD = """
import time
from typing import NotRequired, TypedDict
from verifiers import Example, passed, failed, malformed

class Task(TypedDict):
    want: str
    note: NotRequired[str]

seen, hoard = [], []

"""
GOOD = "    return malformed() if not completion.strip() else passed() if completion == task['want'] else failed()\n"
EXAMPLES = """
EXAMPLES = (
    Example("right", "fine answer", {"want": "fine answer"}),
    Example("wrong", "no", {"want": "fine answer"}),
    Example("malformed", "", {"want": "fine answer"}),
    Example("hostile", "\\x00", {"want": "fine answer"}),
)
"""


def cli(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "verifiers", *arguments]
    return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, check=False, timeout=120)


def write_verifier(directory: Path, name: str, body: str = GOOD) -> None:
    (directory / f"{name}.py").write_text(f"{HEAD}def verify(completion, task):\n{body}{EXAMPLES}")


def test_grading_keeps_order_and_count_and_takes_fields_at_either_place(tmp_path: Path) -> None:
    walk = {"start": "a1", "goal": "c1"}
    rows = [{"completion": "RR", "task": walk}, {"completion": "R", **walk}, {"completion": "?", "task": walk}] * 200
    source, target = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("grade", "gridworld", "--input", str(source), "--output", str(target))
    assert done.returncode == 0, done.stderr
    graded = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["status"] for row in graded] == ["pass", "fail", "malformed"] * 200
    assert set(graded[0]) == {"status", "score", "detail"} and graded[0]["score"] == 1.0
    assert "600 graded (200 fail, 200 malformed, 200 pass)" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_grading_streams_from_stdin_to_stdout_and_survives_odd_text() -> None:
    rows = [{"completion": text, "start": "a1", "goal": "c1"} for text in ("RR", "\ud800", "R\u2028R", "\x00")]
    done = cli("grade", "gridworld", "--input", "-", "--output", "-", stdin="\n".join(map(json.dumps, rows)))
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["pass", *["malformed"] * 3]


def test_a_row_without_its_field_is_an_error_row_and_moves_no_other() -> None:
    rows = '{"completion": "RR", "start": "a1"}\n\n{"completion": "RR", "start": "a1", "goal": "c1"}\n'
    done = cli("grade", "gridworld", "--input", "-", "--output", "-", stdin=rows)
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["status"], first["score"], second["status"]) == ("error", None, "pass")
    assert "'goal'" in first["detail"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "told"),
    [
        (("grade", "gridwrld"), "", "did you mean 'gridworld'"),
        (("grade", "gridworld"), '{"completion": "RR"\n', "-:1: not JSON"),
        (
            ("grade", "gridworld"),
            '{"completion": "R"}\n{"completion": 3}\n',
            "-:2: the completion is 3, not text; a row is",
        ),
        (("grade", "gridworld"), '{"answer": "R"}\n', "-:1: no key 'completion'; have: answer; a row is"),
        (("grade", "gridworld"), '{"completion": "R", "task": 4}\n', "`task` is int"),
        (("grade", "gridworld"), "[" * 100_000, "not JSON"),
        (("grade", "gridworld", "--threads", "0"), "", "--threads 0"),
        (("check", "gridwrld"), "", "did you mean 'gridworld'"),
        (("new", "Bad-Name"), "", "cannot name a verifier"),
        (("new", "gridworld", "--dir", "{tmp}"), "", "taken"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments: tuple, stdin: str, told: str, tmp_path: Path) -> None:
    files = ("--input", "-", "--output", str(tmp_path / "out.jsonl")) if arguments[0] == "grade" else ()
    done = cli(*(part.format(tmp=tmp_path) for part in arguments), *files, stdin=stdin)
    assert done.returncode == 2
    assert told in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["--input", "--output"])
def test_files_that_cannot_be_opened_are_named(missing: str, tmp_path: Path) -> None:
    given = {"--input": str(tmp_path / "x"), "--output": str(tmp_path / "y")}
    (tmp_path / "x").write_text("")
    given[missing] = str(tmp_path / "no" / "such")
    done = cli("grade", "gridworld", *(part for pair in given.items() for part in pair))
    assert done.returncode == 2 and "no/such: No such file" in done.stderr and done.stderr.count("\n") == 1


def test_bytes_that_are_not_utf8_are_a_mistake_of_the_input(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b'{"completion": "\xff\xfe"}\n')
    done = cli("grade", "gridworld", "--input", str(tmp_path / "x"), "--output", str(tmp_path / "y"))
    assert done.returncode == 2 and "UTF-8" in done.stderr and not (tmp_path / "y").exists()


def test_grading_reads_no_further_than_its_window() -> None:
    read = 0

    def rows() -> Iterator[tuple[str, dict]]:
        nonlocal read
        while True:
            read += 1
            yield "RR", {"start": "a1", "goal": "c1"}

    graded = verdicts(verifiers.load("gridworld"), rows(), threads=2, timeout_s=5.0)
    for _ in range(1000):
        next(graded)
    assert read <= 1000 + 64


def test_a_late_row_is_an_error_and_the_rest_is_graded(tmp_path: Path) -> None:
    write_verifier(tmp_path, "sleepy", "    if completion == 'hang': time.sleep(60)\n" + GOOD)
    rows = iter([("a", {"want": "a"}), ("hang", {"want": "a"}), ("b", {"want": "a"})])
    found = list(verdicts(verifiers.load("sleepy", [tmp_path]), rows, threads=2, timeout_s=0.3))
    assert [v.status for v in found] == ["pass", "error", "fail"]


def test_a_json_row_may_hold_unicode_line_separators() -> None:
    line = json.dumps({"completion": "a\u2028b\x85c", "want": "x"}, ensure_ascii=False)
    assert list(read_rows([line], "x")) == [("a\u2028b\x85c", {"want": "x"})]


def test_grading_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from verifiers.__main__ import main; sys.argv[1:] = ['list']; main();"
        "bad = {'torch', 'transformers', 'trl', 'vllm', 'numpy'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_scaffold_passes_the_kit_and_is_never_written_over(tmp_path: Path) -> None:
    made = cli("new", "unit_price", "--dir", str(tmp_path / "mine"))
    assert made.returncode == 0, made.stderr
    checked = cli("check", "unit_price", "--dir", str(tmp_path / "mine"))
    assert checked.returncode == 0 and checked.stdout.splitlines()[1].endswith("ok"), checked.stdout
    again = cli("new", "unit_price", "--dir", str(tmp_path / "mine"))
    assert again.returncode == 2 and "exists already" in again.stderr


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (GOOD, None),
        ("    return passed()\n", "accepts"),
        ("    return passed() if completion == '' else " + GOOD.split("return ")[1], "accepts malformed"),
        ("    return failed()\n", "refuses"),
        ("    return passed() if completion in task['want'] else failed()\n", "accepts"),
        ("    completion.encode()\n" + GOOD, "breaks (bad raised UnicodeEncodeError"),
        ("    seen.append(1)\n    if len(seen) % 2: return failed()\n" + GOOD, "alone"),
        ("    hoard.append(bytearray(100_000))\n" + GOOD, "grew by"),
        ("    if completion == '9**9**9**9': time.sleep(1.1)\n" + GOOD, "took 1.1"),
        ("    return completion == task['want']\n", "not a Verdict"),
    ],
)
def test_the_kit_catches(body: str, fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_call_timer, "slowdown", lambda: 1.0)  # sleeping takes no longer on a busy machine
    write_verifier(tmp_path, "bad", body)
    report = kit.check(verifiers.load("bad", [tmp_path]))
    assert report.conforms == (fault is None), report.faults
    assert fault is None or any(fault in line for line in report.faults), report.faults
    assert fault is None or "FAULTS" in kit.table([report])


ANYWHERE = {
    "substring": "task['want'] in completion",
    "any line": "task['want'] in completion.splitlines()",
    "any word": "task['want'] in completion.split()",
    "first or last line": "task['want'] in (completion.splitlines()[0], completion.splitlines()[-1])",
    "the last line names it": "lines[-1].startswith('Answer:') and task['want'] in lines[-1]",
}
ONE_ANSWER = """
EXAMPLES = (
    Example("right", "Six times seven.\\nAnswer: 42", {"want": "Answer: 42"}),
    Example("wrong", "Six times eight.\\nAnswer: 48", {"want": "Answer: 42"}),
    Example("malformed", "", {"want": "Answer: 42"}),
    Example("hostile", "\\x00", {"want": "Answer: 42"}),
)
"""


def one_line(examples: str) -> str:
    return examples.replace("Six times seven.\\n", "").replace("Six times eight.\\n", "")


@pytest.mark.parametrize("rule", ANYWHERE)
def test_the_kit_catches_a_verifier_that_takes_the_answer_from_anywhere(rule: str, tmp_path: Path) -> None:
    examples = ONE_ANSWER if rule.endswith("line") else ONE_ANSWER.replace('"Answer: 42"}', '"42"}')
    if rule == "first or last line":
        examples = one_line(examples)
    body = "    lines = completion.splitlines()\n    if not completion.strip(): return malformed()\n"
    body += f"    return passed() if {ANYWHERE[rule]} else failed()\n"
    (tmp_path / "anywhere.py").write_text(f"{HEAD}def verify(completion, task):\n{body}{examples}")
    report = kit.check(verifiers.load("anywhere", [tmp_path]))
    found = [fault for fault in report.faults if "joined" in fault or "hostile" in fault]
    assert found and report.false_accepts, report.faults


@pytest.mark.parametrize("line", [0, -1])
def test_the_kit_lets_a_verifier_read_the_first_or_the_last_answer(line: int, tmp_path: Path) -> None:
    body = "    if not completion.strip(): return malformed()\n    lines = completion.strip().splitlines()\n"
    body += f"    return passed() if lines[{line}] == task['want'] else failed()\n"
    examples = ONE_ANSWER if line else one_line(ONE_ANSWER)
    (tmp_path / "one_line.py").write_text(f"{HEAD}def verify(completion, task):\n{body}{examples}")
    assert kit.check(verifiers.load("one_line", [tmp_path])).faults == []


def test_the_kit_names_the_example_that_a_verifier_does_not_come_back_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "HANGS_S", 0.1)
    body = "    if completion == 'no':\n        time.sleep(9)\n" + GOOD + "\nDEADLINE_S = 0.01\n"
    write_verifier(tmp_path, "hangs", body)
    (fault,) = kit.check(verifiers.load("hangs", [tmp_path])).faults
    assert fault.startswith('gave no verdict within 0.1 s on wrong "no"')


def test_a_verifier_of_the_whole_text_says_so(tmp_path: Path) -> None:
    body = (
        "    return malformed() if not completion.strip() else passed() if 'fine answer' in completion else failed()\n"
    )
    write_verifier(tmp_path, "whole", body + "\nWHOLE_TEXT = True\n")
    assert kit.check(verifiers.load("whole", [tmp_path])).faults == []


def test_an_unavailable_verifier_is_skipped_with_its_reason(tmp_path: Path) -> None:
    write_verifier(tmp_path, "away", GOOD + "\ndef unavailable():\n    return 'install it'\n")
    report = kit.check(verifiers.load("away", [tmp_path]))
    assert not report.conforms and report.faults == [] and "skipped: install it" in kit.table([report])


def test_a_file_defining_a_known_name_is_refused(tmp_path: Path) -> None:
    write_verifier(tmp_path, "gridworld")
    with pytest.raises(ValueError, match="defined twice"):
        verifiers.load("gridworld", [tmp_path])


def test_optional_task_fields_are_not_required(tmp_path: Path) -> None:
    write_verifier(tmp_path, "noted")
    verifier = verifiers.load("noted", [tmp_path])
    assert verifier.required_fields == {"want"} and verifier.fields == {"want", "note"}


def test_examples_that_share_a_task_do_not_repeat_the_hostile_texts() -> None:
    """The first two examples of shell_task have one task, the third another."""
    rows = kit.cases(verifiers.load("shell_task"))
    tasks = {json.dumps(row.task, sort_keys=True) for row in rows}
    for text in kit.HOSTILE:
        assert sum(row.completion == text for row in rows) == len(tasks) == 2, text[:40]


SANDBOXED = ("python_stdio", "python_tests", "shell_task")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SANDBOXED else ()) for n in sorted(verifiers.available())]
)
def test_every_verifier_passes_the_kit(name: str) -> None:
    report = kit.check(verifiers.load(name))
    if report.skipped:
        pytest.skip(report.skipped)
    assert report.faults == []
    assert report.rights and report.wrongs
