"""A Python program against what it must print for what it reads, in the sandbox.

The answer is the last fenced block that is a program (or the whole completion if there is no fence). It runs as a
script once per case. A block without a Python label counts only if it imports, defines or calls print, input or open,
so that sample output is not taken for a program; imports and helpers may be in separate blocks. Each run must print
the stdout of the case, ignoring spaces at line ends and empty lines at the end, and exit with status 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, sandbox
from verifiers.sandbox import Case, check_program, limits_for

DEADLINE_S = 2 * sandbox.DEADLINE_S  # there are several cases


class CaseFields(TypedDict):
    stdin: str
    stdout: str


class Task(TypedDict):
    prompt: str
    cases: list[CaseFields]
    timeout_s: NotRequired[float]  # CPU seconds of one run


def unavailable() -> str | None:
    return sandbox.unavailable()


def verify(completion: str, task: Task) -> Verdict:
    """Raises ValueError if the task cannot be run, SandboxUnavailable without isolation."""
    cases = [Case(case["stdin"], case["stdout"]) for case in task["cases"]]
    return check_program(completion, cases, limits=limits_for(task.get("timeout_s")))


def verify_batch(completions: Sequence[str], tasks: Sequence[Task]) -> list[Verdict]:
    """Raises SandboxUnavailable without isolation; any other failure of a row gives that row `error`."""
    return sandbox.verify_rows(verify, completions, tasks)


_TASK: Mapping[str, Any] = {
    "prompt": "Read n, then n integers, one a line. Print their sum.",
    "cases": [{"stdin": "3\n1\n2\n3\n", "stdout": "6\n"}, {"stdin": "1\n-7\n", "stdout": "-7\n"}],
}

EXAMPLES = (
    Example("right", "```python\nn = int(input())\nprint(sum(int(input()) for _ in range(n)))\n```", _TASK),
    Example("right", "import sys\nn, *xs = map(int, sys.stdin.read().split())\nprint(sum(xs))", _TASK),
    Example("right", "print(sum(map(int, list(open(0))[1:])))", _TASK),
    Example("wrong", "```python\nprint(6)\n```", _TASK),
    Example("wrong", "n = int(input())\nprint(sum(int(input()) for _ in range(n)))\nraise SystemExit(1)", _TASK),
    Example("wrong", "print('6')\nprint('-7')", _TASK),
    Example("malformed", "", _TASK),
    Example("malformed", "```python\nprint(sum(int(input()) for _ in\n```", _TASK),
    Example("hostile", "import os\nos._exit(0)", _TASK),
    Example("hostile", "while True:\n    print('6\\n-7\\n' * 1000)", _TASK),
)
