"""Go on with a row of digits on paper: each is the last one plus the third last, modulo 7, written out line by line.

To the prompt `352:` the right answer begins with the lines `3+2=5` and `5+5=3`. Only the result of the last line is
judged, so that the reward says nothing about which line went wrong. Ten lines are 60 tokens: 59 characters and the end.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any, TypedDict

from verifiers import Example, Verdict, failed, malformed, passed

LINES, MODULUS = 10, 7
LINE = re.compile(r"[0-6]\+[0-6]=([0-6])")


class Task(TypedDict):
    digits: str


def worked(digits: str) -> str:
    """The right lines."""
    row, lines = [int(digit) for digit in digits], []
    for _ in range(LINES):
        row.append((row[-3] + row[-1]) % MODULUS)
        lines.append(f"{row[-4]}+{row[-2]}={row[-1]}")
    return "\n".join(lines)


def verify(completion: str, task: Task) -> Verdict:
    """Passes if there are ten lines, each an addition, and the last result is right."""
    lines = completion.strip("\n").split("\n")
    if len(lines) != LINES or not all(LINE.fullmatch(line) for line in lines):
        return malformed(f"not {LINES} lines of the form 3+2=5")
    last, right = lines[-1][-1], worked(task["digits"])[-1]
    return passed("the right digit") if last == right else failed(f"ends in {last}, not {right}")


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows of {prompt, completion, task}."""
    rng = random.Random(seed)
    for _ in range(n):
        digits = "".join(str(rng.randrange(MODULUS)) for _ in range(3))
        yield {"prompt": f"{digits}:", "completion": worked(digits), "task": {"digits": digits}}


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    """Another last result, a line too few, and an answer without lines."""
    text = example.completion
    yield Example("wrong", f"{text[:-1]}{(int(text[-1]) + 1 + rng.randrange(6)) % MODULUS}", example.task)
    yield Example("malformed", text.rpartition("\n")[0], example.task)
    yield Example("malformed", text[-1], example.task)


_TASK = {"digits": "352"}
EXAMPLES = (
    Example("right", worked("352"), _TASK, 1.0),
    Example("right", "0+0=0\n" * 9 + worked("352")[-5:], _TASK, 1.0),  # only the last result is judged
    Example("wrong", worked("352")[:-1] + "4", _TASK),
    Example("malformed", worked("352")[:-6], _TASK),
    Example("malformed", "", _TASK),
    Example("hostile", worked("352") + "\x00", _TASK),
    Example("hostile", "3+2=5\n" * 1000, _TASK),
)
