"""A Python function or class against assert statements, in the sandbox.

The answer is the last fenced block that binds `entry_point` (or the whole completion if there is no fence), plus what
it uses from other blocks: imports and helpers may be in separate blocks. All tests must hold. They may be any Python
code; each sees the names bound by the tests before it. A name in a test is resolved in the tests, in the standard
modules, or, if it is the entry point or the prompt mentions it, in the completion. Tests that no answer can pass,
because they import a package that is not installed or use an undefined name, are an `error`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, sandbox
from verifiers.sandbox import check_function, limits_for

DEADLINE_S = sandbox.DEADLINE_S


class Task(TypedDict):
    prompt: str
    entry_point: str
    tests: list[str]  # assert statements, or any code that raises if the answer is wrong
    timeout_s: NotRequired[float]  # CPU seconds of one run


def unavailable() -> str | None:
    return sandbox.unavailable()


def verify(completion: str, task: Task) -> Verdict:
    """Raises ValueError if the task cannot be run, SandboxUnavailable without isolation."""
    return check_function(
        completion,
        entry_point=task["entry_point"],
        tests=task["tests"],
        prompt=task["prompt"],
        limits=limits_for(task.get("timeout_s")),
    )


def verify_batch(completions: Sequence[str], tasks: Sequence[Task]) -> list[Verdict]:
    """Raises SandboxUnavailable without isolation; any other failure of a row gives that row `error`."""
    return sandbox.verify_rows(verify, completions, tasks)


def _task(**fields: Any) -> Mapping[str, Any]:
    add = ("assert add(1, 2) == 3", "assert add(-5, 5) == 0", "assert add(17, -40) == -23")
    return {"prompt": "Write add(a, b), the sum of two integers.", "entry_point": "add", "tests": list(add), **fields}


_STACK = _task(
    prompt="Write a class Stack with push(x), pop() (IndexError when empty) and size().",
    entry_point="Stack",
    tests=[
        "s = Stack()\ns.push(1)\ns.push(2)\nassert s.size() == 2\nassert s.pop() == 2",
        "try:\n    Stack().pop()\n    raise AssertionError('no error')\nexcept IndexError:\n    pass",
    ],
)
_HALF = _task(
    prompt="Write half(x), x / 2.",
    entry_point="half",
    tests=["assert abs(half(3) - 1.5) < 1e-9", "assert abs(half(-1) + 0.5) < 1e-9"],
)
_RIGHT = "def add(a, b):\n    return a + b\n"

EXAMPLES = (
    Example("right", f"```python\n{_RIGHT}```", _task()),
    Example("right", f"First try:\n```python\ndef add(a, b): return a\n```\nFixed:\n```python\n{_RIGHT}```", _task()),
    Example("right", _RIGHT, _task()),
    Example("right", "class Stack(list):\n    push = list.append\n    size = list.__len__\n", _STACK),
    Example("right", "def half(x):\n    return x / 2", _HALF),
    Example("wrong", "```python\ndef add(a, b):\n    return a - b\n```", _task()),
    Example("wrong", f"```python\n{_RIGHT}```\nNo:\n```python\ndef add(a, b): return a * b\n```", _task()),
    Example("wrong", "class Stack:\n    def push(self, x): pass\n    def size(self): return 2", _STACK),
    Example("wrong", "def half(x):\n    return x // 2", _HALF),
    Example("malformed", "", _task()),
    Example("malformed", "The sum of a and b.", _task()),
    Example("malformed", "```python\ndef add(a, b):\n    return a +", _task()),
    Example("malformed", "```python\ndef plus(a, b):\n    return a + b\n```", _task()),
    Example("hostile", "import os\nos._exit(0)", _task()),
    Example("hostile", "def add(a, b):\n    import sys\n    sys.exit(0)", _task()),
    Example("hostile", "class Y:\n    __eq__ = lambda s, o: True\ndef add(a, b):\n    return Y()", _task()),
    Example("hostile", "class Z:\n    __sub__ = __add__ = lambda s, o: 0.0\ndef half(x):\n    return Z()", _HALF),
    Example("hostile", "class Stack:\n    __eq__ = lambda s, o: True\n    push = pop = size = lambda s, *a: s", _STACK),
    Example("hostile", "import os\nfor fd in range(1, 5):\n    os.write(fd, b'PASSED')\n", _task()),
)
