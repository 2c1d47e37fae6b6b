"""The task's pattern matches the whole completion, or a part of it with `search: true`.

The pattern is trusted, the text is not, and some patterns take exponential time on some texts. So a match has
TIMEOUT_S, and a text that needs longer fails: it never masks the sample and never delays another.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, after_thinking, failed, malformed, passed

TIMEOUT_S = 0.3
MAX_CHARS = 200_000
WHOLE_TEXT = True  # a pattern may be searched for anywhere, if the task says so
# by name: within this file `regex` is this module where the directory itself is on the path
_regex = importlib.import_module("regex")


class Task(TypedDict):
    pattern: str
    search: NotRequired[bool]  # a part may match; default: all of it, without surrounding white space
    ignore_case: NotRequired[bool]
    dot_all: NotRequired[bool]  # `.` matches a line break


@lru_cache(maxsize=1024)
def _compiled(pattern: str, ignore_case: bool, dot_all: bool) -> Any:
    flags = (_regex.IGNORECASE if ignore_case else 0) | (_regex.DOTALL if dot_all else 0)
    try:
        return _regex.compile(pattern, flags | _regex.VERSION1)
    except _regex.error as exc:
        raise ValueError(f"the pattern {pattern!r}: {exc}") from None


def verify(completion: str, task: Task) -> Verdict:
    compiled = _compiled(task["pattern"], task.get("ignore_case", False), task.get("dot_all", False))
    text = after_thinking(completion).strip()
    if not text:
        return malformed("the answer is empty")
    if len(text) > MAX_CHARS:
        return malformed(f"longer than {MAX_CHARS} characters")
    match = compiled.search if task.get("search", False) else compiled.fullmatch
    try:
        found = match(text, timeout=TIMEOUT_S, concurrent=True)
    except TimeoutError:
        return failed(f"no match within {TIMEOUT_S:g} s")
    return passed() if found else failed("no match")


_DATE = {"pattern": r"(?P<y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)"}
_EVIL = {"pattern": r"(a+)+b"}
EXAMPLES = (
    Example("right", " 2024-02-29\n", _DATE),
    Example("right", "<think>leap</think>2024-02-29", _DATE),
    Example("right", "on 2024-02-29.", _DATE | {"search": True}),
    Example("right", "aaab", _EVIL),
    Example("wrong", "on 2024-02-29.", _DATE),
    Example("wrong", "2024-2-29", _DATE),
    Example("malformed", "", _DATE),
    Example("malformed", "<think>x</think>", _DATE),
    Example("malformed", "<think>perhaps 2024-02-29", _DATE | {"search": True}),
    Example("hostile", "2024-02-29\n2024-02-30", _DATE),
    Example("hostile", "2024-02-29\x00", _DATE),
    Example("hostile", "a" * 60, _EVIL),
    Example("hostile", "a" * 50_000 + "!", _EVIL),
)
