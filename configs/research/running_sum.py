"""Add up a row of digits on paper: to the prompt `385:` the right answer is the lines `3+8=1` and `1+5=6`.

Each line adds the next digit to the last result, modulo 10. Only the result of the last line is judged, so that the
reward says nothing about which line went wrong. The answer to eleven digits has ten lines and 60 tokens: 59 characters
and the end.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, TypedDict

from verifiers import Example, Verdict, failed, malformed, passed

DIGITS = 11
LINE = re.compile(r"[0-9]\+[0-9]=([0-9])")


class Task(TypedDict):
    digits: str


def verify(completion: str, task: Task) -> Verdict:
    """Passes if every line is an addition, there is one per digit after the first, and the last result is right."""
    lines = completion.strip("\n").split("\n")
    matches = [LINE.fullmatch(line) for line in lines]
    if len(lines) != len(task["digits"]) - 1 or not all(matches):
        return malformed(f"not {len(task['digits']) - 1} lines of the form 3+8=1")
    last, total = int(lines[-1][-1]), sum(map(int, task["digits"])) % 10
    return passed("the right sum") if last == total else failed(f"ends in {last}, the sum is {total}")


def worked(digits: str) -> str:
    """The right lines."""
    results = list(accumulate(map(int, digits), lambda total, digit: (total + digit) % 10))
    return "\n".join(f"{a}+{digit}={b}" for a, digit, b in zip(results, digits[1:], results[1:], strict=False))


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows of {prompt, completion, task}."""
    rng = random.Random(seed)
    for _ in range(n):
        digits = "".join(rng.choice("0123456789") for _ in range(DIGITS))
        yield {"prompt": f"{digits}:", "completion": worked(digits), "task": {"digits": digits}}


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    """Another last result, a line too few, and an answer without lines."""
    text = example.completion
    yield Example("wrong", f"{text[:-1]}{(int(text[-1]) + 1 + rng.randrange(9)) % 10}", example.task)
    yield Example("malformed", text.rpartition("\n")[0], example.task)
    yield Example("malformed", text[-1], example.task)


_TASK = {"digits": "3857"}
EXAMPLES = (
    Example("right", "3+8=1\n1+5=6\n6+7=3", _TASK, 1.0),
    Example("right", "3+8=2\n2+5=6\n6+7=3", _TASK, 1.0),  # only the last result is judged
    Example("wrong", "3+8=1\n1+5=6\n6+7=4", _TASK),
    Example("malformed", "3+8=1\n1+5=6", _TASK),
    Example("malformed", "3+8=1\n1+5=6\n6+7=13", _TASK),
    Example("malformed", "", _TASK),
    Example("hostile", "3+8=1\n1+5=6\n6+7=3\x00", _TASK),
    Example("hostile", "3+8=1\n" * 1000, _TASK),
)
