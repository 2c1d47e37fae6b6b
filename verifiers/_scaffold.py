"""Template of a new verifier; it passes the conformance kit as written."""

from __future__ import annotations

import keyword
from pathlib import Path

from verifiers import available

TEMPLATE = '''"""{name}: the answer stands on the last line after `Answer:` and must equal the task's `expected`."""

from __future__ import annotations

from typing import TypedDict

from verifiers import Example, Verdict, failed, malformed, passed


class Task(TypedDict):
    """The fields of a task row; wrap an optional one in NotRequired[...]."""

    expected: str


def verify(completion: str, task: Task) -> Verdict:
    """Judge one completion. Plain data in, a Verdict out: no network, no eval, no model, and no state between rows.

    An exception here is an `error` verdict: the row is masked, never scored. So raise for a broken task,
    and return malformed() for a broken completion.
    """
    lines = completion.strip().splitlines()
    if not lines or not lines[-1].startswith("Answer:"):
        return malformed("the last line does not start with `Answer:`")
    answer = lines[-1].removeprefix("Answer:").strip()
    if not answer:
        return malformed("nothing after `Answer:`")
    return passed() if answer == task["expected"] else failed(f"{{answer[:100]!r}} is not the expected answer")


_TASK = {{"expected": "42"}}
EXAMPLES = (
    Example("right", "Six times seven.\\nAnswer: 42", _TASK),
    Example("wrong", "Six times eight.\\nAnswer: 48", _TASK),
    Example("malformed", "It is 42.", _TASK),
    Example("hostile", "Answer: 42\\nAnswer: 43", _TASK),
    Example("hostile", "Answer: 42 or 43", _TASK),
)
'''


def write(name: str, directory: str | Path) -> Path:
    """Write the file. Raises ValueError if the name is no module name or is taken, or if the file exists."""
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or name != name.lower():
        raise ValueError(f"{name!r} cannot name a verifier: use small letters, digits and _, as in `unit_price`")
    path = Path(directory) / f"{name}.py"
    if path.exists():
        raise ValueError(f"{path} exists already; choose another name")
    Path(directory).mkdir(parents=True, exist_ok=True)
    if name in available([directory]):
        raise ValueError(f"the name {name!r} is taken by one of Whetstone's own verifiers; choose another")
    path.write_text(TEMPLATE.format(name=name))
    return path
